"""Find CUDA's and cuDNN's libraries for ONNX Runtime in the Python packages that bring them, and say what is missing.

`onnxruntime.preload_dlls` (1.21 on) looks beside onnxruntime itself and where the system's loader does. Where packages
lie under several roots, as on a PYTHONPATH of unpacked archives, it finds nothing: here every entry of `sys.path` is
searched before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.probe import cuda_version
from mineral_batch.errors import BackendError
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("mineral_batch")

# Where the packages of NVIDIA and torch keep them, below an entry of sys.path.
_FOLDERS = ("nvidia/*/lib", "torch/lib")
# The oldest driver for a major version of CUDA: https://docs.nvidia.com/deploy/cuda-compatibility/
_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
_PROVIDER_LIBRARIES = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "TensorrtExecutionProvider": "libonnxruntime_providers_tensorrt.so",
}
_REQUIREMENTS = "https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#requirements"


def require_recent_driver(runtime: Any) -> None:
    """Refuse a driver that is too old for the CUDA that this onnxruntime-gpu was built for.

    A driver runs every minor version of the CUDA that it supports, so only the major versions are compared.

    Args:
        runtime: the module `onnxruntime`.

    Raises:
        BackendError: if it is too old, with what to do.
    """
    built = str(getattr(runtime, "cuda_version", "") or "")
    needed = _major(built)
    if needed and needed > _major(driver := cuda_version()):
        oldest = _OLDEST_DRIVERS.get(needed)
        raise BackendError(
            f"the NVIDIA driver supports CUDA {driver}, and onnxruntime-gpu {runtime.__version__} is built for CUDA "
            f"{built}: update the driver{f' to {oldest} or newer' if oldest else ''}, or install the build for CUDA "
            f"{_major(driver)} ({_REQUIREMENTS})"
        )


def why_provider_does_not_load(runtime: Any, provider: str) -> str:
    """The loader's own words on the library of a provider, such as which `.so` is missing; empty if it loads.

    ONNX Runtime logs them at a level that is hidden here, and raises nothing.

    Args:
        runtime: the module `onnxruntime`.
        provider: ONNX Runtime's name of it.
    """
    folder = Path(str(getattr(runtime, "__file__", ""))).parent / "capi"
    library = folder / _PROVIDER_LIBRARIES.get(provider, "")
    if sys.platform != "linux" or not library.is_file():
        return ""
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), mode=os.RTLD_LAZY)
    except OSError as error:
        if "libcuda.so" in str(error):
            return f"{error}: install the NVIDIA driver"
        extra = "onnx-trt" if provider.startswith("Tensorrt") else "gpu"
        return f"{error}: {pip_install(extra)} installs the NVIDIA libraries that it needs"
    return ""


def load_cuda_libraries(runtime: Any) -> None:
    """Load what ONNX Runtime needs, wherever a Python package has it; what is not found is no error yet.

    A library that is loaded once is found again by its name, by any caller. ONNX Runtime's own search comes last: it
    knows the layout of Windows, and its provider can be registered only when the libraries are there. What it prints
    goes to the debug log: only the session shows whether a missing library matters.

    Args:
        runtime: the module `onnxruntime`.
    """
    if sys.platform == "linux":
        for name in _needed(str(getattr(runtime, "cuda_version", "") or "")):
            if not _is_loaded(name):
                _load(name)
    if hasattr(runtime, "preload_dlls"):
        with _silent(runtime):
            runtime.preload_dlls()


def _needed(cuda: str) -> list[str]:
    """Names of the libraries, in the order of their dependencies, for a CUDA version such as `13.0`; none without."""
    major = _major(cuda)
    if not major:
        return []
    return [
        f"libcublasLt.so.{major}",
        f"libcublas.so.{major}",
        f"libnvrtc.so.{major}",
        "libcurand.so.10",
        f"libcufft.so.{12 if major >= 13 else 11}",
        f"libcudart.so.{major}",
        "libcudnn.so.9",
    ]


def _major(version: str) -> int:
    """`13.0` -> 13; 0 if it is no version."""
    major = version.partition(".")[0]
    return int(major) if major.isdigit() else 0


def _is_loaded(name: str) -> bool:
    """Whether it is in this process already, for example through torch."""
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _load(name: str) -> None:
    """Load the first of this name, in the order in which Python imports packages."""
    for root in dict.fromkeys(map(Path, sys.path)):
        for folder in _FOLDERS:
            for path in sorted(root.glob(f"{folder}/{name}")):
                # A damaged one, or one for another platform: the next may load.
                with suppress(OSError):
                    ctypes.CDLL(str(path))
                    _log.debug("loaded %s", path)
                    return


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    """Send what this module's functions print to the log; other threads may print, so stdout stays as it is."""
    module.print = lambda *words, **_: _log.debug("onnxruntime: %s", " ".join(map(str, words)))
    try:
        yield
    finally:
        del module.print
