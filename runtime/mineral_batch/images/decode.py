"""From a file to the model's input. The only decoder: training and deployment both come through here.

A picture that cannot be read is a value, `Failure`, that keeps its place in the run.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError, _imaging

from mineral_batch.images.exif import read_capture
from mineral_batch.types import Failure, Image, Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.model.contract import InputSpec


# Telephones take 200 megapixels; far beyond that is a panorama or a decompression bomb. Pillow's own guard is
# process-global and starts to warn at 89 megapixels, so it is moved to where ours stands; it refuses twice that.
MAX_PIXELS = 256_000_000
PILImage.MAX_IMAGE_PIXELS = MAX_PIXELS
MAX_BYTES = 2**30


def _silence_libtiff() -> None:
    """Keep libtiff and Pillow's reader of it off the terminal: what is wrong with a picture is said in its row.

    Pillow turns libtiff's warnings off, and not its errors. Where libtiff is out of reach inside Pillow (on Windows)
    they still come.
    """
    logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


_silence_libtiff()

# Pillow hands these to Ghostscript or to the operating system, which would run what the file says.
_RUN_BY_OTHER_PROGRAMS = frozenset({"EPS", "WMF"})

# Whose decoders compute a smaller picture of the whole. (That of HEIC would put the file's thumbnail in its place.)
_SCALED_BY_THE_DECODER = frozenset({"JPEG", "MPO"})

# ISO/IEC 23008-12: what the first bytes call HEVC pictures, pictures of any kind, and AVIF, which Pillow reads itself.
_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})

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


class DecoderError(PictureError):
    """A picture of a format whose decoder is not installed: nothing is wrong with the file."""


def open_rgb(source: str | Path | bytes, *, cover: tuple[int, int] | None = None) -> PILImage.Image:
    """Decode a photograph upright, as RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit channels are scaled to 8, the first frame of
    an animation is taken. The content decides the format, not the file's name. Colour profiles are not applied.
    HEIC needs the package pillow-heif, which is imported when the first such picture comes.

    Args:
        source: a path, or the file's bytes.
        cover: (width, height) that the result will be resized to. A JPEG is then decoded at the smallest of the
            decoder's own scales (1, 1/2, 1/4, 1/8) that is at least twice that: several times faster for camera
            pictures, at 56 dB PSNR against the full decode at 12 megapixels. None decodes in full.

    Raises:
        PictureError: if the content is no picture, is damaged or truncated, or is absurdly large.
        OSError: if the file cannot be read.
    """
    content = source if isinstance(source, bytes) else read_file(Path(source))
    try:
        return _decode(content, cover)[0]
    except PictureError:
        raise
    except Exception as error:  # see load_image
        raise PictureError(one_line(error)) from error


def resize(picture: PILImage.Image, spec: InputSpec) -> Pixels:
    """An upright RGB picture at the model's input size, antialiased: (spec.height, spec.width, 3) uint8."""
    box = seen_part(picture.size, spec)
    resized = picture.resize((spec.width, spec.height), _FILTERS[spec.interpolation], box=box)
    return np.asarray(resized, dtype=np.uint8)


def seen_part(size: tuple[int, int], spec: InputSpec) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what the model sees of an upright picture of `size` (width, height)."""
    if spec.resize == "squash":
        return 0.0, 0.0, float(size[0]), float(size[1])
    return _central_box(size, (spec.width, spec.height))


def load_image(path: str | Path, spec: InputSpec, *, exact: bool = False) -> Image | Failure:
    """Read, decode and resize one photograph; whatever is wrong with it comes back as a `Failure`.

    Args:
        path: the file.
        spec: the model's input.
        exact: decode JPEGs in full instead of at the nearest sufficient scale (see `open_rgb`).
    """
    return decode_image(str(path), lambda: read_file(Path(path)), spec, exact=exact)


def decode_image(
    name: str,
    read: Callable[[], bytes | PILImage.Image],
    spec: InputSpec,
    *,
    exact: bool = False,
    with_capture: bool = False,
) -> Image | Failure:
    """What `load_image` does, for a picture that is not a file by itself.

    Args:
        name: for the result's `path`.
        read: gives the file's bytes, or a picture that is decoded already; raises `OSError` or `PictureError`.
        spec: the model's input.
        exact: see `load_image`.
        with_capture: read when and where the picture was taken, too.
    """
    try:
        content = read()
    except (OSError, PictureError) as error:
        return Failure(name, "read", one_line(error))
    try:
        picture, (width, height) = _decode(content, None if exact else (spec.width, spec.height))
        capture = read_capture(content) if with_capture else None
        return Image(name, resize(picture, spec), width, height, capture)
    except DecoderError as error:  # like a file that cannot be read, it is tried again in the next run
        return Failure(name, "read", one_line(error))
    # Damaged files make the decoders raise almost anything (struct.error, KeyError, SyntaxError, MemoryError, ...).
    except Exception as error:
        return Failure(name, "decode", one_line(error))


def read_file(path: Path) -> bytes:
    """A photograph's bytes.

    Raises:
        PictureError: if the file is empty or absurdly large.
        OSError: if it cannot be read.
    """
    size = path.stat().st_size
    check_size(size)
    return path.read_bytes()


def check_size(size: int) -> None:
    """Refuse a file of so many bytes.

    Raises:
        PictureError: if it is empty or too large to be held.
    """
    if size == 0:
        raise PictureError("the file is empty")
    if size > MAX_BYTES:
        raise PictureError(f"{size} bytes is over the limit of {MAX_BYTES}")


def open_picture(content: bytes) -> PILImage.Image:
    """A file's header: format, size and metadata are known, the pixels are decoded when they are asked for.

    Raises:
        PictureError: if the content is no picture of a format that is supported; `DecoderError` if the format needs a
            package that is not installed.
    """
    if _is_heif(content):
        _register_heif()
    try:
        return PILImage.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise PictureError("not a picture, or of a format that is not supported") from None


def _is_heif(content: bytes) -> bool:
    """Whether a file says that it is HEIC or another HEIF, of which AVIF is not one here."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[at : at + 4] for at in range(8, end, 4)}
    return bool(brands & _HEVC_BRANDS or (brands & _GENERAL_BRANDS and not brands & _AVIF_BRANDS))


def _register_heif() -> None:
    """Have Pillow open HEIC, too.

    Raises:
        DecoderError: if there is no package for it.
    """
    PILImage.init()  # Pillow's own formats first, so that AVIF stays Pillow's
    if "HEIF" in PILImage.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise DecoderError("HEIC is read by a package of its own: pip install 'mineral-batch[heif]'") from None


def _decode(content: bytes | PILImage.Image, cover: tuple[int, int] | None) -> tuple[PILImage.Image, tuple[int, int]]:
    """The upright RGB picture, and (width, height) of the upright photograph before any scaling by the decoder."""
    # A caller's own picture is copied: closing and turning must not touch it.
    with content.copy() if isinstance(content, PILImage.Image) else open_picture(content) as picture:
        if picture.width * picture.height > MAX_PIXELS:
            raise PictureError(f"{picture.width} x {picture.height} is over the limit of {MAX_PIXELS} pixels")
        if picture.format in _RUN_BY_OTHER_PROGRAMS:
            raise PictureError(f"{picture.format} is not a photograph's format and is not opened")
        width, height = picture.size
        if cover is not None and picture.format in _SCALED_BY_THE_DECODER:
            picture.draft(None, (2 * max(cover), 2 * max(cover)))
        # Only now is the orientation known: Pillow turns a TIFF itself while loading it, and a PNG may carry the tag
        # behind its pixels.
        picture.load()
        turn = turn_of(picture)
        rgb = _to_rgb(picture)
        upright = (width, height) if turn not in SIDEWAYS else (height, width)
        return (rgb if turn is None else rgb.transpose(turn)), upright


#: The turns that exchange width and height.
SIDEWAYS = (_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8])


def turn_of(picture: PILImage.Image) -> PILImage.Transpose | None:
    """What makes an open picture upright, by its EXIF; damaged metadata must not cost an intact picture."""
    if picture.format == "HEIF":  # turned by its decoder as its own boxes say; the EXIF tag is only information
        return None
    try:
        value = picture.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return None
    return _UPRIGHT.get(value) if isinstance(value, int) else None


def _to_rgb(picture: PILImage.Image) -> PILImage.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
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


def one_line(error: BaseException) -> str:
    """An exception in words: one line, no memory addresses, the file's name left to its own column."""
    if isinstance(error, PictureError):
        return str(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = " ".join(text.split()) or "no details"
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
