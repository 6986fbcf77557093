"""From a file to the model's input. The only decoder: training and deployment both come through here.

A picture that cannot be read is a value, `Failure`, that keeps its place in the run.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import UnidentifiedImageError

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mineral_batch.contract import InputSpec

Pixels = NDArray[np.uint8]

#: What `find_images` takes for a photograph, in lower case. A file named directly is taken whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib"}
    | {".avif", ".avifs", ".jp2", ".ppm", ".pgm", ".tga"}
)

# Telephones take 200 megapixels; far beyond that is a panorama or a decompression bomb. Pillow's own guard is
# process-global and starts to warn at 89 megapixels, so it is moved to where ours stands; it refuses twice that.
MAX_PIXELS = 256_000_000
PILImage.MAX_IMAGE_PIXELS = MAX_PIXELS
MAX_BYTES = 2**30

# Pillow hands these to Ghostscript or to the operating system, which would run what the file says.
_RUN_BY_OTHER_PROGRAMS = frozenset({"EPS", "WMF"})

_FILTERS = {"bilinear": PILImage.Resampling.BILINEAR, "bicubic": PILImage.Resampling.BICUBIC}


# EXIF orientation (tag 274) -> what makes the picture upright; 1 and anything unknown need nothing.
_ORIENTATION_TAG = 274
_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}


class PictureError(Exception):
    """Why one picture cannot be read, in words for its row in failures.csv."""


@dataclass(frozen=True)
class Failure:
    """A picture without a prediction.

    Attributes:
        path: as `find_images` gave it.
        stage: `read` (the file), `decode` (its content) or `infer` (the model's answer).
        reason: one line.
    """

    path: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Image:
    """A decoded picture.

    Attributes:
        path: as `find_images` gave it.
        pixels: (H, W, 3) uint8 RGB, the model's input size.
        width: of the upright photograph, pixels.
        height: of the upright photograph, pixels.
    """

    path: str
    pixels: Pixels
    width: int
    height: int


def find_images(inputs: Iterable[str | Path]) -> Iterator[Path | Failure]:
    """The photographs under folders, and the files named directly, each once and in a fixed order.

    Folders are walked depth first, names sorted by code point, hidden ones skipped; symbolic links to folders are
    followed once. A folder that may not be read is a `Failure` in its place. Memory grows with the inputs named and
    with one folder's listing, not with the tree.

    Raises:
        DataError: if an input does not exist.
    """
    seen = _Seen()
    # All are looked at before the first is walked: a mistyped name must not end a run that took hours.
    for given, is_folder in [(Path(given), _is_existing_folder(Path(given))) for given in inputs]:
        if is_folder:
            yield from _walk(given, seen)
        elif seen.is_new_file(given):
            yield given


def _is_existing_folder(given: Path) -> bool:
    try:
        return stat.S_ISDIR(given.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {given} (current folder: {Path.cwd()})") from None
    except OSError as error:
        raise DataError(f"cannot read {given}: {_one_line(error)}") from None


class _Seen:
    """The folders walked and the files named so far, however their paths were spelt."""

    def __init__(self) -> None:
        self._folders: set[tuple[int, int]] = set()
        self._named: set[tuple[tuple[int, int], str]] = set()

    def is_new_folder(self, folder: Path) -> bool:
        identity = _identity(folder)
        is_new = identity not in self._folders
        self._folders.add(identity)
        return is_new

    def is_new_file(self, file: Path) -> bool:
        """For a file that was named directly: neither named before nor found in a folder."""
        folder = _identity(file.parent)
        is_new = (folder, file.name) not in self._named
        self._named.add((folder, file.name))
        return is_new and not (folder in self._folders and _is_photograph(file.name))

    def named(self, folder: Path) -> set[str]:
        """The names of a folder's files that were named directly."""
        identity = _identity(folder) if self._named else None
        return {name for parent, name in self._named if parent == identity}


def _walk(folder: Path, seen: _Seen) -> Iterator[Path | Failure]:
    try:
        if not seen.is_new_folder(folder):  # a loop of links, or a folder given twice
            return
        done = seen.named(folder)
        with os.scandir(folder) as listing:
            entries = sorted((entry.name, _is_folder(entry)) for entry in listing)
    except OSError as error:
        yield Failure(str(folder), "read", _one_line(error))
        return
    for name, is_folder in entries:
        if is_folder and not name.startswith("."):
            yield from _walk(folder / name, seen)
        elif _is_photograph(name) and not is_folder and name not in done:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads nowhere or to itself: reading it will say so, in its own row."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_photograph(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


def open_rgb(source: str | Path | bytes, *, cover: tuple[int, int] | None = None) -> PILImage.Image:
    """Decode a photograph upright, as RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit channels are scaled to 8, the first frame of
    an animation is taken. The content decides the format, not the file's name. Colour profiles are not applied.

    Args:
        source: a path, or the file's bytes.
        cover: (width, height) that the result will be resized to. A JPEG is then decoded at the smallest of the
            decoder's own scales (1, 1/2, 1/4, 1/8) that is at least twice that: several times faster for camera
            pictures, at 56 dB PSNR against the full decode at 12 megapixels. None decodes in full.

    Raises:
        PictureError: if the content is no picture, is damaged or truncated, or is absurdly large.
        OSError: if the file cannot be read.
    """
    content = source if isinstance(source, bytes) else _read(Path(source))
    try:
        return _decode(content, cover)[0]
    except PictureError:
        raise
    except Exception as error:  # see load_image
        raise PictureError(_one_line(error)) from error


def resize(picture: PILImage.Image, spec: InputSpec) -> Pixels:
    """An upright RGB picture at the model's input size, antialiased: (spec.height, spec.width, 3) uint8."""
    box = None if spec.resize == "squash" else _central_box(picture.size, (spec.width, spec.height))
    resized = picture.resize((spec.width, spec.height), _FILTERS[spec.interpolation], box=box)
    return np.asarray(resized, dtype=np.uint8)


def load_image(path: str | Path, spec: InputSpec, *, exact: bool = False) -> Image | Failure:
    """Read, decode and resize one photograph; whatever is wrong with it comes back as a `Failure`.

    Args:
        path: the file.
        spec: the model's input.
        exact: decode JPEGs in full instead of at the nearest sufficient scale (see `open_rgb`).
    """
    try:
        content = _read(Path(path))
    except (OSError, PictureError) as error:
        return Failure(str(path), "read", _one_line(error))
    try:
        picture, (width, height) = _decode(content, None if exact else (spec.width, spec.height))
        return Image(str(path), resize(picture, spec), width, height)
    # Damaged files make the decoders raise almost anything (struct.error, KeyError, SyntaxError, MemoryError, ...).
    except Exception as error:
        return Failure(str(path), "decode", _one_line(error))


def _read(path: Path) -> bytes:
    size = path.stat().st_size
    if size == 0:
        raise PictureError("the file is empty")
    if size > MAX_BYTES:
        raise PictureError(f"{size} bytes is over the limit of {MAX_BYTES}")
    return path.read_bytes()


def _decode(content: bytes, cover: tuple[int, int] | None) -> tuple[PILImage.Image, tuple[int, int]]:
    """The upright RGB picture, and (width, height) of the upright photograph before any scaling by the decoder."""
    try:
        opened = PILImage.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise PictureError("not a picture, or of a format that is not supported") from None
    with opened as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"{picture.width} x {picture.height} is over the limit of {MAX_PIXELS} pixels")
        if picture.format in _RUN_BY_OTHER_PROGRAMS:
            raise PictureError(f"{picture.format} is not a photograph's format and is not opened")
        width, height = picture.size
        if cover is not None:
            picture.draft(None, (2 * max(cover), 2 * max(cover)))
        # Only now is the orientation known: Pillow turns a TIFF itself while loading it, and a PNG may carry the tag
        # behind its pixels.
        picture.load()
        turn = _UPRIGHT.get(_orientation(picture))
        rgb = _to_rgb(picture)
        upright = (width, height) if turn not in _SIDEWAYS else (height, width)
        return (rgb if turn is None else rgb.transpose(turn)), upright


_SIDEWAYS = (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])


def _orientation(picture: PILImage.Image) -> int:
    """The EXIF orientation, 1 where there is none; damaged metadata must not cost an intact picture."""
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(picture: PILImage.Image) -> PILImage.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture.copy() if picture.readonly else picture.convert("RGB")
    if picture.mode.startswith("I") or picture.mode == "F":
        return _scaled_to_8_bits(picture).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = PILImage.new("RGBA", rgba.size, "white")
        return PILImage.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def _scaled_to_8_bits(picture: PILImage.Image) -> PILImage.Image:
    """A greyscale of 16 or 32 bits or of floats as 8 bits; plain conversion would clip it to white.

    Integers are taken on the 16-bit scale; floats on the 0..1 scale, or, where they exceed it, up to their maximum.
    """
    values = np.asarray(picture, dtype=np.float32)
    if not np.isfinite(values).all():
        raise PictureError("contains values that are not numbers")
    top = 65535.0 if picture.mode != "F" else max(1.0, float(values.max()))
    return PILImage.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))


def _central_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the largest central part of a picture that has the aspect ratio of `target`."""
    width, height = size
    scale = min(width / target[0], height / target[1])
    across, down = target[0] * scale, target[1] * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def _one_line(error: BaseException) -> str:
    """An exception in words: one line, no memory addresses, the file's name left to its own column."""
    if isinstance(error, PictureError):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or "no details"
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
