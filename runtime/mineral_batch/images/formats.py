"""Which format a file is in, by its content, and the Pillow image that decodes it."""

from __future__ import annotations

import ctypes
import importlib
import logging
from contextlib import suppress
from typing import NamedTuple

from PIL import Image as PILImage
from PIL import UnidentifiedImageError, _imaging

from mineral_batch.errors import ImageError, MissingDecoderError
from mineral_batch.images.limits import MAX_PIXELS, BoundedReads, over_pixels, raise_pillows_limit
from mineral_batch.images.metadata import without_metadata
from mineral_batch.images.raw import is_raw, open_raw
from mineral_batch.images.tiff.load import open_tiff
from mineral_batch.images.tiff.pages import (
    count_further,
    is_tiff,
    main_page,
    read_pages,
    with_first_page,
    with_xmp_as_bytes,
)
from mineral_batch.images.tiff.read import can_read
from mineral_batch.system import pip_install

# Pillow passes these to Ghostscript or to the operating system, which would execute what the file contains.
_EXECUTED = frozenset({"EPS", "WMF"})
# Textures of games and of an old Windows, decoded in Python: minutes for an image that a photograph's decoder does in a
# second.
_SLOW = frozenset({"BLP", "FTEX", "MSP"})
# Numbers as text are read in Python, too: a second for 6 MB.
_PLAIN_NUMBERS, _MAX_PLAIN_NUMBERS = (b"P1", b"P2", b"P3"), 64 * 2**20

# ISO/IEC 23008-12: the brands of HEVC images, of images of any codec, and of AVIF, which Pillow reads itself.
_HEVC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_GENERAL_BRANDS = frozenset({b"mif1", b"msf1"})
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_WITHOUT_SIGNATURE = (".tga",)
#: ISO/IEC 18181-2: a bare codestream, or a container.
JXL_SIGNATURES = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")


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


class Opened(NamedTuple):
    """An open file.

    Attributes:
        image: its photo.
        content: the bytes that the image reads: those of the file, in which the photo is made the first image of a
            TIFF, and metadata that Pillow cannot read are left out; none if it is decoded already.
        further: how many more photos the file has: pages of a TIFF, images of a HEIC. Frames of an animation are none.
    """

    image: PILImage.Image
    content: bytes = b""
    further: int = 0


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Opened:
    """Open a file: format, size and metadata are read, the pixels are decoded on `load`.

    Camera raw, and TIFFs that Pillow decodes wrongly, are decoded at once, if they have no more than `max_pixels`.

    Raises:
        ImageError: if the format is unknown or not supported; `MissingDecoderError` if it needs an optional package.
    """
    raise_pillows_limit(max_pixels)
    if is_raw(content):
        return Opened(open_raw(content, max_pixels))
    if is_tiff(content):
        return _open_tiff(content, max_pixels)
    if content.startswith(_PLAIN_NUMBERS) and len(content) > _MAX_PLAIN_NUMBERS:
        raise ImageError(f"{len(content)} bytes of numbers as text are over the limit of {_MAX_PLAIN_NUMBERS}")
    _register_optional(content)
    image: PILImage.Image
    try:
        image = PILImage.open(BoundedReads(content))
    except (PILImage.DecompressionBombError, PILImage.DecompressionBombWarning):
        raise ImageError(over_pixels(max_pixels)) from None
    except ImageError:
        raise
    # Damaged metadata make Pillow's readers raise almost anything.
    except Exception as error:
        content = without_metadata(content)
        image = _opened(content, error)
    if image.format in _EXECUTED | _SLOW:
        raise ImageError(f"{image.format} is not a photo format and is not opened")
    return Opened(image, content, getattr(image, "n_frames", 1) - 1 if image.format == "HEIF" else 0)


def may_be_image(head: bytes, name: str) -> bool:
    """Return whether the first bytes of a file may be an image's, so that the rest is worth reading."""
    PILImage.init()
    signatures = (accept for _, accept in PILImage.OPEN.values() if accept is not None)
    return (
        name.lower().endswith(_WITHOUT_SIGNATURE)
        or is_raw(head)
        or _is_heif(head)
        or head.startswith(JXL_SIGNATURES)
        or any(accept(head) for accept in signatures)
    )


def _open_tiff(content: bytes, max_pixels: int) -> Opened:
    pages = read_pages(content)
    page = main_page(pages)
    if page is None:
        raise ImageError("image file is truncated")
    further = count_further(pages, page)
    if can_read(page):
        return Opened(open_tiff(content, page, max_pixels), b"", further)
    if page is not pages[0]:
        content = with_first_page(content, page)
    content = with_xmp_as_bytes(content, page)
    try:
        return Opened(PILImage.open(BoundedReads(content)), content, further)
    except ImageError:
        raise
    except Exception as error:
        if can_read(page, ordinary=True):
            return Opened(open_tiff(content, page, max_pixels), b"", further)
        content = without_metadata(content)
        return Opened(_opened(content, error), content, further)


def _opened(content: bytes, earlier: Exception) -> PILImage.Image:
    """Open a file whose metadata was removed, because opening the whole file failed."""
    try:
        return PILImage.open(BoundedReads(content))
    except UnidentifiedImageError:
        if isinstance(earlier, UnidentifiedImageError):
            raise ImageError("not an image, or in a format that is not supported") from None
        raise earlier from None


def _register_optional(content: bytes) -> None:
    """Register the decoder that a file needs with Pillow, if it is an optional package.

    Raises:
        MissingDecoderError: if it is not installed.
    """
    if _is_heif(content):
        _register("HEIF", "HEIC", "pillow_heif", "heif")
    elif content.startswith(JXL_SIGNATURES):
        _register("JXL", "JPEG XL", "pillow_jxl", "jxl")


def _is_heif(content: bytes) -> bool:
    """Return whether a file declares itself HEIC or another HEIF; AVIF is not counted."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[at : at + 4] for at in range(8, end, 4)}
    return bool(brands & _HEVC_BRANDS or (brands & _GENERAL_BRANDS and not brands & _AVIF_BRANDS))


def _register(kind: str, name: str, module: str, extra: str) -> None:
    PILImage.init()  # Pillow's own formats first, so that AVIF stays Pillow's
    if kind in PILImage.OPEN:
        return
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        raise MissingDecoderError(f"{name} needs an optional package: {pip_install(extra)}") from None
    if hasattr(plugin, "register_heif_opener"):  # the other one registers itself
        plugin.register_heif_opener()
