"""What is installed on this machine, and what a run is missing."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CUDA_PROVIDER = Path("capi", "libonnxruntime_providers_cuda.so")

#: Modules that the stages need -> the package to bring along if the machine has none.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "numpy": "numpy",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "onnxruntime": "onnxruntime-gpu",
}
#: Modules without which part of a stage is left out -> that part.
OPTIONAL = {
    "cuda.core": "the native backend without pycuda",
    "tensorrt": "engines of TensorRT: FP16, INT8 and FP8",
    "tensorrt_rtx": "the attempt with TensorRT for RTX",
    "torch_tensorrt": "torch-tensorrt as a peer",
    "nvidia.nvimgcodec": "decoding on the GPU",
    "nncf": "the INT8 graph, unless paper-int8.onnx is brought along",
    "modelopt": "the FP8 graph, unless paper-float8.onnx is brought along",
}


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it
        return False


def has_tensorrt() -> bool:
    """Whether NVIDIA's full TensorRT is there, the only engine that runs INT8 and FP8 graphs in these types."""
    return is_there("tensorrt")


def missing(*, is_dry: bool) -> list[str]:
    """Return the packages that stages need and do not find; ONNX Runtime counts only with its CUDA provider."""
    lacking = [package for module, package in NEEDED.items() if not is_there(module)]
    if not (is_dry or lacking[-1:] == ["onnxruntime-gpu"] or _has_cuda(_onnxruntime())):
        lacking.append("onnxruntime-gpu")
    return lacking


def imported_onnxruntime() -> str:
    """Return the folder of the ONNX Runtime that is imported, and whether it has the CUDA provider."""
    if not is_there("onnxruntime"):
        return "none"
    folder = _onnxruntime()
    return f"{folder}, {'with' if _has_cuda(folder) else 'without'} the CUDA provider"


def onnxruntime_at(paths: list[str]) -> str:
    """Return the version of the ONNX Runtime on these paths, and whether it has the CUDA provider."""
    importlib.invalidate_caches()  # a wheel may have been unpacked since
    found = PathFinder.find_spec("onnxruntime", paths)
    if not found or not found.origin:
        return "none"
    file = Path(found.origin)
    version = re.search(r"""^__version__ = ["'](.+)["']""", file.read_text("utf-8"), re.MULTILINE)
    words = "with" if _has_cuda(file.parent) else "without"
    return f"{version[1] if version else 'of unknown version'} {words} the CUDA provider"


def _onnxruntime() -> Path:
    found = importlib.util.find_spec("onnxruntime")
    return Path(found.origin).parent if found and found.origin else Path()


def _has_cuda(folder: Path) -> bool:
    return (folder / _CUDA_PROVIDER).is_file()


def left_out() -> dict[str, str]:
    """Return the optional modules that are absent, and what is left out for each."""
    return {module: what for module, what in OPTIONAL.items() if not is_there(module)}


def versions() -> dict[str, str]:
    """Return the version of everything that may be measured, or `absent`."""
    names = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "pycuda", "timm", "onnx")
    found = {}
    for name in (*names, "nncf", "nvidia-modelopt", "nvidia-nvimgcodec-cu13", "nvidia-cudnn-cu13", "nvidia-cublas"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def library_folders(roots: Iterable[str]) -> list[str]:
    """Return the folders with CUDA's, cuDNN's and TensorRT's libraries: ONNX Runtime looks only beside itself."""
    patterns = ("nvidia/*/lib", "torch/lib", "tensorrt_libs")
    found = (
        str(folder) for root in roots if root for pattern in patterns for folder in sorted(Path(root).glob(pattern))
    )
    return list(dict.fromkeys(found))
