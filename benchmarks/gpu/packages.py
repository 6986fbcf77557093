"""What was brought along: put together, unpacked, compiled; and what is missing."""

from __future__ import annotations

import csv
import importlib.util
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from common import is_there

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from common import Settings

_PIECE = ".part00"
# Where CUDA's toolkit puts nvcc, which is not always on the path.
_COMPILER = "/usr/local/cuda/bin"
_CUDA_PROVIDER = Path("capi", "libonnxruntime_providers_cuda.so")

#: Modules that the stages need -> the package to bring along where the machine has none.
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
#: Modules without which a part of a stage is left out -> what that is.
OPTIONAL = {
    "tensorrt": "engines of TensorRT: FP16, INT8 and FP8",
    "tensorrt_rtx": "the attempt with TensorRT for RTX",
    "torch_tensorrt": "torch-tensorrt as a peer",
    "nvidia.nvimgcodec": "decoding on the GPU",
    "nncf": "the INT8 graph, unless paper-int8.onnx is brought along",
    "modelopt": "the FP8 graph, unless paper-float8.onnx is brought along",
}
#: What unpacking or compiling may raise.
ERRORS = (OSError, subprocess.CalledProcessError, tarfile.TarError, lzma.LZMAError, zipfile.BadZipFile)


def brought(settings: Settings) -> Iterator[str]:
    """Names of what is unpacked, also of what came in pieces NAME.part00, NAME.part01, ...; compiled is `sources`."""
    if settings.wheels is None:
        return
    yield from sorted(first.name.removesuffix(_PIECE) for first in settings.wheels.glob(f"*{_PIECE}"))
    for suffix in (".whl", ".tar.xz"):
        yield from sorted(file.name for file in settings.wheels.glob(f"*{suffix}"))


def sources(settings: Settings) -> list[Path]:
    """Packages that are compiled here."""
    return [] if settings.wheels is None else sorted(settings.wheels.glob("*.tar.gz"))


def unpack(settings: Settings, name: str) -> None:
    """Add what is in a file to OUT/site, in the place of an older version; a graph in pieces is only put together."""
    assert settings.wheels is not None
    file = settings.wheels / name
    if not file.is_file():
        file = _whole(settings, name)
    if not _is_package(name):
        return
    with _scratch(settings.site) as folder:
        if name.endswith(".whl"):
            _unzip(file, folder)
        else:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
        _add(folder, settings.site)


@contextmanager
def _scratch(site: Path) -> Iterator[Path]:
    """An empty folder beside OUT/site for a while; what an attempt that was killed has left in it goes first."""
    folder = site.with_name("unpacking")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_unpacked(settings: Settings, name: str) -> bool:
    """Whether what was unpacked can still be where it was put."""
    return settings.site.is_dir() if _is_package(name) else (settings.out / name).is_file()


def _is_package(name: str) -> bool:
    return name.endswith((".whl", ".tar.xz"))


def _whole(settings: Settings, name: str) -> Path:
    """The pieces put together, in OUT, where a graph that was brought along is looked for, too."""
    assert settings.wheels is not None
    whole = settings.out / name
    with whole.open("wb") as file:
        for piece in sorted(settings.wheels.glob(f"{name}.part*")):
            file.write(piece.read_bytes())
    return whole


def _unzip(wheel: Path, site: Path) -> None:
    """As the wheel format says, but for scripts and headers, which are of no use here."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not (place := _place(member.filename)):
                continue
            member.filename = place
            archive.extract(member, site)


def _place(name: str) -> str:
    """Where a file of a wheel belongs in OUT/site; empty for one of no use here."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, inside = rest.partition("/")
    return inside if kind in ("purelib", "platlib") else ""


def _add(folder: Path, site: Path) -> None:
    """Move packages to OUT/site, file by file since many have their modules in `nvidia`; older versions go first."""
    names = {_distribution(new) for new in folder.glob("*.dist-info")}
    for old in site.glob("*.dist-info"):
        if _distribution(old) in names:
            _remove(old, site)
    for file in [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]:
        target = site / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _distribution(folder: Path) -> str:
    """Name of the package that a folder NAME-VERSION.dist-info belongs to, spelt one way."""
    return re.sub(r"[-_.]+", "-", folder.stem.rsplit("-", 1)[0]).lower()


def _remove(old: Path, site: Path) -> None:
    """Remove what a package lists as its own, so that no module of it outlives it."""
    record = old / "RECORD"
    listed = record.read_text("utf-8").splitlines() if record.is_file() else []
    for name in [row[0] for row in csv.reader(listed) if row]:
        file = Path(os.path.normpath(site / _place(name)))
        if file.is_relative_to(site) and file.is_file():  # scripts may be listed outside
            file.unlink()
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
                compiled.unlink()
            _prune(file.parent / "__pycache__", site)
    shutil.rmtree(old, ignore_errors=True)


def _prune(folder: Path, site: Path) -> None:
    """Remove a folder and those around it that are empty: each would be a package still."""
    while folder != site and not (folder.is_dir() and any(folder.iterdir())):
        if folder.is_dir():
            folder.rmdir()
        folder = folder.parent


def build(source: Path, site: Path) -> str:
    """Compile a package and add it to OUT/site; nothing is fetched.

    Returns:
        The folder in OUT/site that describes what was compiled.

    Raises:
        CalledProcessError: with pip's words.
    """
    with _scratch(site) as folder:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
        command += ["--target", str(folder), str(source)]
        found = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), _COMPILER])}
        # A file that the user brought along.
        subprocess.run(command, env=found, check=True, capture_output=True, text=True)  # noqa: S603
        made = next(path.name for path in folder.glob("*.dist-info"))
        _add(folder, site)
        return made


def why(error: BaseException) -> str:
    """The end of what a program said, or the error itself."""
    return str(getattr(error, "stderr", "") or error).strip()[-300:]


def missing(*, is_dry: bool) -> list[str]:
    """Packages that other stages need and do not find; ONNX Runtime counts only with its CUDA provider."""
    lacking = [package for module, package in NEEDED.items() if not is_there(module)]
    if not (is_dry or lacking[-1:] == ["onnxruntime-gpu"] or _has_cuda(_onnxruntime())):
        lacking.append("onnxruntime-gpu")
    return lacking


def imported_onnxruntime() -> str:
    """Which of the installed ones is imported, and whether it has the CUDA provider."""
    if not is_there("onnxruntime"):
        return "none"
    folder = _onnxruntime()
    return f"{folder}, {'with' if _has_cuda(folder) else 'without'} the CUDA provider"


def onnxruntime_at(paths: list[str]) -> str:
    """Version of the ONNX Runtime that is imported from these paths, and whether it has the CUDA provider."""
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
    """Modules that are absent, and what is left out for it."""
    return {module: what for module, what in OPTIONAL.items() if not is_there(module)}


def versions() -> dict[str, str]:
    """Version of everything that may be measured; `absent` where it is not there."""
    names = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "pycuda", "timm", "onnx")
    found = {}
    for name in (*names, "nncf", "nvidia-modelopt", "nvidia-nvimgcodec-cu13", "nvidia-cudnn-cu13", "nvidia-cublas"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def library_folders(roots: Iterable[str]) -> list[str]:
    """Where packages keep CUDA's, cuDNN's and TensorRT's libraries: ONNX Runtime looks for them beside itself only."""
    patterns = ("nvidia/*/lib", "torch/lib", "tensorrt_libs")
    found = (
        str(folder) for root in roots if root for pattern in patterns for folder in sorted(Path(root).glob(pattern))
    )
    return list(dict.fromkeys(found))
