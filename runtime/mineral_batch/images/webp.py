"""Still WebP images decoded by libwebp in two steps, which tells damage that a decoder does not notice.

WebP has no checksums: libwebp decodes any bytes to some image, and complains only if they do not suffice. But an
encoder writes no more than the decoder needs (RFC 6386 7.3, RFC 9649 3.7), and data that were changed end elsewhere. So
the decoder first gets all but the last bytes: if it finishes without them, the data were changed. Nothing is decoded
twice.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from mineral_batch.types import Pixels

# Bytes that are held back at first. The lossless coder fills its last byte; the arithmetic coder's flush leaves up to
# four bytes that decide nothing.
_HELD_BACK = {b"VP8L": 1, b"VP8 ": 8}
_COLOR_SPACES = {"RGB": 0, "RGBA": 1}
# libwebp's VP8StatusCode.
_OK, _NO_MEMORY, _SUSPENDED = 0, 1, 5


def load_webp(image: PILImage.Image, content: bytes) -> PILImage.Image:
    """Decode an open WebP; the pixels are those of Pillow, which uses the same library.

    Animations are left to Pillow, and so is everything where its libwebp cannot be called: in the wheels for Windows.

    Args:
        image: Pillow's image, with its pixels not loaded.
        content: the file's bytes.

    Raises:
        ImageError: if it is damaged.
        MemoryError: if memory runs out.
    """
    data, library = _image_data(content), _libwebp()
    if data is None or library is None or image.mode not in _COLOR_SPACES:
        image.load()
        return image
    pixels = np.empty((image.height, image.width, len(image.mode)), np.uint8)
    decoder = library.WebPINewRGB(
        _COLOR_SPACES[image.mode], pixels.ctypes.data, pixels.nbytes, image.width * len(image.mode)
    )
    if not decoder:
        raise MemoryError
    try:
        first = library.WebPIUpdate(decoder, content, data.needed)
        status = library.WebPIUpdate(decoder, content, data.end) if first == _SUSPENDED else first
    finally:
        library.WebPIDelete(decoder)
    if status == _NO_MEMORY:
        raise MemoryError
    if first == _OK:
        raise ImageError(f"damaged: the image is complete before its data end at byte {data.end}")
    if status == _SUSPENDED:
        raise ImageError(f"damaged: the data end at byte {data.end} before the image is complete")
    if status != _OK:
        raise ImageError(f"damaged: libwebp cannot decode it (status {status})")
    return _as_image(pixels, image.mode)


def _as_image(pixels: Pixels, mode: str) -> PILImage.Image:
    height, width, _ = pixels.shape
    return PILImage.frombytes(mode, (width, height), pixels.data, "raw", mode)


class _ImageData(NamedTuple):
    """Offsets in the file: where the coded image ends, and up to where at least the decoder must need it."""

    needed: int
    end: int


def _image_data(content: bytes) -> _ImageData | None:
    """Find the image of a file; None of an animation. Its end is the file's if that is truncated."""
    at = 12
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        if kind in _HELD_BACK:
            end = min(at + 8 + size, len(content))
            return _ImageData(max(end - _HELD_BACK[kind], at + 8), end)
        if kind == b"ANMF":
            return None
        at += 8 + size + size % 2
    return None


@cache
def _libwebp() -> ctypes.CDLL | None:
    """Return Pillow's libwebp; None where its functions cannot be called."""
    try:
        from PIL import _webp

        library = ctypes.CDLL(_webp.__file__)  # symbols are looked up in the libraries that it is linked with, too
        library.WebPINewRGB.restype = ctypes.c_void_p
        library.WebPINewRGB.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        library.WebPIUpdate.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        library.WebPIDelete.argtypes = [ctypes.c_void_p]
        library.WebPIDelete.restype = None
    except (ImportError, OSError, AttributeError):
        return None
    return library
