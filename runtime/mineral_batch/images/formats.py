"""Which format a file is in, by its content, and the Pillow image that decodes it."""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
from contextlib import suppress

from PIL import Image as PILImage
from PIL import UnidentifiedImageError, _imaging

from mineral_batch.errors import ImageError, MissingDecoderError

# Pillow passes these to Ghostscript or to the operating system, which would execute what the file contains.
_EXECUTED = frozenset({"EPS", "WMF"})

# ISO/IEC 23008-12: the brands of HEVC images, of images of any codec, and of AVIF, which Pillow reads itself.
_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def _silence_libtiff() -> None:
    """Keep libtiff's messages, and those of Pillow's TIFF reader, off the terminal.

    Pillow turns libtiff's warnings off, but not its errors. On Windows libtiff's symbols are not exported from
    Pillow's extension module, and its errors still appear.
    """
    logging.getLogger("PIL.TiffImagePlugin").addHandler(logging.NullHandler())
    with suppress(OSError, AttributeError):
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


_silence_libtiff()


def open_image(content: bytes) -> PILImage.Image:
    """Open a file: format, size and metadata are read, the pixels are decoded on `load`.

    Raises:
        ImageError: if the format is unknown or not supported; `MissingDecoderError` if it needs an optional package.
    """
    if _is_heif(content):
        _register_heif()
    try:
        image = PILImage.open(io.BytesIO(content))
    except UnidentifiedImageError:
        raise ImageError("not an image, or in a format that is not supported") from None
    if image.format in _EXECUTED:
        raise ImageError(f"{image.format} is not a photo format and is not opened")
    return image


def _is_heif(content: bytes) -> bool:
    """Return whether a file declares itself HEIC or another HEIF; AVIF is not counted."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[at : at + 4] for at in range(8, end, 4)}
    return bool(brands & _HEVC_BRANDS or (brands & _GENERAL_BRANDS and not brands & _AVIF_BRANDS))


def _register_heif() -> None:
    """Register the HEIC decoder with Pillow.

    Raises:
        MissingDecoderError: if pillow-heif is not installed.
    """
    PILImage.init()  # Pillow's own formats first, so that AVIF stays Pillow's
    if "HEIF" in PILImage.OPEN:
        return
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise MissingDecoderError("HEIC needs an optional package: pip install 'mineral-batch[heif]'") from None
