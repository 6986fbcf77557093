"""Unpack and compile what was brought along, into a folder that comes before what the machine has."""

from __future__ import annotations

import csv
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_bench.gpu.settings import Settings

_PIECE = ".part00"
# The CUDA toolkit's folder with nvcc, which is not always on the path.
_COMPILER = "/usr/local/cuda/bin"

#: Errors of unpacking and compiling.
ERRORS = (OSError, EOFError, subprocess.CalledProcessError, tarfile.TarError, lzma.LZMAError, zipfile.BadZipFile)


def brought(settings: Settings) -> Iterator[str]:
    """Yield the names of what is unpacked, also of what came in pieces NAME.part00, NAME.part01, ...."""
    if settings.wheels is None:
        return
    yield from sorted(first.name.removesuffix(_PIECE) for first in settings.wheels.glob(f"*{_PIECE}"))
    for suffix in (".whl", ".tar.xz"):
        yield from sorted(file.name for file in settings.wheels.glob(f"*{suffix}"))


def sources(settings: Settings) -> list[Path]:
    """Return the packages that are compiled on this machine."""
    return [] if settings.wheels is None else sorted(settings.wheels.glob("*.tar.gz"))


def unpack(settings: Settings, name: str) -> None:
    """Add a package to OUT/site in place of an older version; an ONNX file in pieces is only joined."""
    assert settings.wheels is not None
    file = settings.wheels / name
    if not file.is_file():
        file = _join(settings, name)
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
    """Yield an empty folder beside OUT/site; what a killed attempt left in it is removed first."""
    folder = site.with_name("unpacking")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_unpacked(settings: Settings, name: str) -> bool:
    """Whether what was unpacked is still there."""
    return settings.site.is_dir() if _is_package(name) else (settings.out / name).is_file()


def _is_package(name: str) -> bool:
    return name.endswith((".whl", ".tar.xz"))


def _join(settings: Settings, name: str) -> Path:
    """Join the pieces in OUT, where an ONNX file that was brought along is looked for, too."""
    assert settings.wheels is not None
    whole = settings.out / name
    with whole.open("wb") as file:
        for piece in sorted(settings.wheels.glob(f"{name}.part*")):
            file.write(piece.read_bytes())
    return whole


def _unzip(wheel: Path, site: Path) -> None:
    """Unpack a wheel, without its scripts and headers, which are of no use here."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            if member.is_dir() or not (place := _place(member.filename)):
                continue
            member.filename = place
            archive.extract(member, site)


def _place(name: str) -> str:
    """Return the place of a wheel's file in OUT/site; empty for one of no use here."""
    first, _, rest = name.partition("/")
    if not first.endswith(".data"):
        return name
    kind, _, inside = rest.partition("/")
    return inside if kind in ("purelib", "platlib") else ""


def _add(folder: Path, site: Path) -> None:
    """Move packages to OUT/site file by file, since many share the folder `nvidia`; remove older versions first."""
    names = {_distribution(new) for new in folder.glob("*.dist-info")}
    for old in site.glob("*.dist-info"):
        if _distribution(old) in names:
            _remove(old, site)
    for file in [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]:
        target = site / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _distribution(folder: Path) -> str:
    """Return the normalized package name of a folder NAME-VERSION.dist-info."""
    return re.sub(r"[-_.]+", "-", folder.stem.rsplit("-", 1)[0]).lower()


def _remove(old: Path, site: Path) -> None:
    """Remove the files that a package lists as its own."""
    record = old / "RECORD"
    listed = record.read_text("utf-8").splitlines() if record.is_file() else []
    for name in [row[0] for row in csv.reader(listed) if row]:
        file = Path(os.path.normpath(site / _place(name)))
        if file.is_relative_to(site) and file.is_file():  # scripts may lie outside
            file.unlink()
            for compiled in file.parent.glob(f"__pycache__/{file.stem}.*.pyc"):
                compiled.unlink()
            _prune(file.parent / "__pycache__", site)
    shutil.rmtree(old, ignore_errors=True)


def _prune(folder: Path, site: Path) -> None:
    """Remove a folder and its parents if they are empty: each would still import as a package."""
    while folder != site and not (folder.is_dir() and any(folder.iterdir())):
        if folder.is_dir():
            folder.rmdir()
        folder = folder.parent


def build(source: Path, site: Path) -> str:
    """Compile a package and add it to OUT/site; nothing is downloaded.

    Returns:
        The name of its `.dist-info` folder in OUT/site.

    Raises:
        CalledProcessError: with pip's output.
    """
    with _scratch(site) as folder:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation"]
        command += ["--target", str(folder), str(source)]
        environment = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), _COMPILER])}
        # A file that the user brought along.
        subprocess.run(command, env=environment, check=True, capture_output=True, text=True)  # noqa: S603
        built = next(path.name for path in folder.glob("*.dist-info"))
        _add(folder, site)
        return built


def reason(error: BaseException) -> str:
    """Return the end of a program's output, or the error itself."""
    return str(getattr(error, "stderr", "") or error).strip()[-300:]
