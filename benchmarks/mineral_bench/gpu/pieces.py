"""Prepare what a GPU run brings along, in pieces that fit one delivery each, and rehearse the deliveries.

The machine takes the checkout and at most 64 MiB at a time, and each delivery replaces the one before. So each delivery
holds one piece, and its command copies it to a folder that stays.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_bench.gpu import unpack
from mineral_bench.gpu.prune import prune
from mineral_bench.gpu.settings import TINY, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Bytes of a piece: with the checkout (about 15 MB) it stays below 64 MiB.
PIECE_BYTES = 45 * 1000 * 1000

#: What most stages need and a machine with PyTorch does not have.
PACKAGES = ("onnxruntime-gpu>=1.27", "flatbuffers", "protobuf", "packaging")
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
_PYTHON = "3.12"

# Files of wheels that no stage uses: ONNX Runtime's TensorRT provider needs a TensorRT that the machine lacks.
_UNUSED = ("libonnxruntime_providers_tensorrt.so",)
_UNUSED_FOLDERS = ("tools", "transformers", "quantization", "datasets")

_CUDA_PROVIDER = "libonnxruntime_providers_cuda.so"

_ARCHIVE = "packages.tar.xz"


@dataclass(frozen=True)
class Piece:
    """A file of one delivery.

    Attributes:
        path: where it is.
        sha256: of its content.
    """

    path: Path
    sha256: str


def download(folder: Path, packages: Sequence[str] = PACKAGES) -> None:
    """Download wheels for the machine, Linux on x86-64 with Python 3.12, whatever this one is.

    Raises:
        DataError: if pip cannot, with the end of its output.
    """
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", _PYTHON, *platforms, "--dest", str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise DataError(f"pip cannot download {', '.join(packages)}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def pack(
    wheels: Iterable[Path], folder: Path, piece_bytes: int = PIECE_BYTES, capability: str | None = None
) -> list[Piece]:
    """Unpack wheels, leave out what the run does not use, compress the rest together and cut it into pieces.

    Args:
        wheels: files.
        folder: where the pieces `packages.tar.xz.part00`, ... are written.
        piece_bytes: largest size of one.
        capability: of the GPU, as in `9.0`: code for others is left out of the CUDA provider; None keeps all of it.

    Raises:
        DataError: if there is no wheel, or no code for that GPU.
    """
    wheels = list(wheels)
    if not wheels:
        raise DataError("there is no wheel to pack")
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{_ARCHIVE}.part*"):
        old.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        unpacked, archive = Path(scratch, "unpacked"), Path(scratch, _ARCHIVE)
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as content:
                content.extractall(unpacked)  # noqa: S202 - wheels that pip has verified
        _remove_unused(unpacked)
        if capability is not None:
            for library in unpacked.rglob(_CUDA_PROVIDER):
                prune(library, capability)
        with tarfile.open(archive, "w:xz", preset=6) as tar:
            tar.add(unpacked, ".")
        return list(_cut(archive, folder, piece_bytes))


def _remove_unused(folder: Path) -> None:
    for path in [path for name in _UNUSED for path in folder.rglob(name)]:
        path.unlink()
    for name in _UNUSED_FOLDERS:
        shutil.rmtree(folder / "onnxruntime" / name, ignore_errors=True)


def _cut(archive: Path, folder: Path, piece_bytes: int) -> Iterable[Piece]:
    with archive.open("rb") as file:
        for index in range(100):
            content = file.read(piece_bytes)
            if not content:
                return
            path = folder / f"{archive.name}.part{index:02}"
            path.write_bytes(content)
            yield Piece(path, hashlib.sha256(content).hexdigest())
    raise DataError(f"{archive.name} does not fit into 100 pieces of {piece_bytes} bytes: make them larger")


def commands(pieces: Sequence[Piece], carried: str, kept: str, out: str) -> list[str]:
    """Return the command of each delivery, then that of the run, for the machine's shell.

    Args:
        pieces: in their order.
        carried: folder of the delivered piece, relative to the checkout.
        kept: folder outside of the checkout that survives the next delivery.
        out: folder of the results.
    """
    copies = [
        f"mkdir -p {kept} && cp {carried}/{piece.path.name} {kept}/ && "
        f"echo '{piece.sha256}  {kept}/{piece.path.name}' | sha256sum --check"
        for piece in pieces
    ]
    return [*copies, f"python benchmarks/gpu.py --wheels {kept} --out {out}"]


def rehearse(pieces: Sequence[Piece], show: Callable[[str], object]) -> list[str]:
    """Play the deliveries through on this machine: join and unpack the pieces as the stage `install` does.

    Each delivery replaces the one before, so that a piece that was not copied would be missing at the end.

    Args:
        pieces: in their order.
        show: called with a line for each delivery.

    Returns:
        The names of the packages that can then be imported.

    Raises:
        DataError: if a piece was damaged or is missing, or what was joined cannot be unpacked.
    """
    with tempfile.TemporaryDirectory() as scratch:
        carried, kept, out = (Path(scratch, name) for name in ("carried", "kept", "out"))
        kept.mkdir()
        for number, piece in enumerate(pieces, 1):
            shutil.rmtree(carried, ignore_errors=True)
            carried.mkdir()
            shutil.copyfile(piece.path, carried / piece.path.name)
            delivered = carried / piece.path.name
            if hashlib.sha256(delivered.read_bytes()).hexdigest() != piece.sha256:
                raise DataError(f"{piece.path} is damaged: prepare the pieces again")
            shutil.copyfile(delivered, kept / piece.path.name)
            show(f"delivery {number} of {len(pieces)}: {piece.path.name}, {piece.path.stat().st_size / 1e6:.1f} MB")
        settings = Settings(out, kept, None, TINY)
        out.mkdir()
        try:
            for name in unpack.brought(settings):
                unpack.unpack(settings, name)
        except unpack.ERRORS as error:
            raise DataError(f"the pieces cannot be joined and unpacked: {error}") from None
        return sorted(path.name for path in settings.site.iterdir() if (path / "__init__.py").is_file())
