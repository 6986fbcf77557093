"""What is refused before it is read or decoded, because of its size."""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

#: The default of `--max-pixels`. Phones take 200 megapixels; far beyond that is a panorama or a decompression bomb.
MAX_PIXELS = 256_000_000
# Pillow's own limit is global to the process and warns from 89 megapixels on. It refuses only twice its limit.
PILImage.MAX_IMAGE_PIXELS = MAX_PIXELS
_OVER_PIXELS = re.compile(r"over the limit of (\d+) pixels(?! a side)")
#: The longest side: a row of more takes gigabytes by itself.
MAX_SIDE = 500_000
_DEFLATE_RATIO = 1032
#: The largest file that is read.
MAX_BYTES = 2**30
# Headers and some formats are read in Python, byte by byte, at 2 to 4 million reads a second.
_MAX_READS = 16_000_000


class BoundedReads(io.BytesIO):
    """A file in memory that can be read only so often: comments, padding and segments can be of any number."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `io.BytesIO` does.

        Raises:
            ImageError: if it was read too often.
        """
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"more than the limit of {_MAX_READS} pieces to read")
        return super().read(size)


def check_bytes(size: int) -> None:
    """Check the size of a file.

    Raises:
        ImageError: if it is empty or too large.
    """
    if size == 0:
        raise ImageError("the file is empty")
    if size > MAX_BYTES:
        raise ImageError(f"{size} bytes is over the limit of {MAX_BYTES}")


def raise_pillows_limit(max_pixels: int) -> None:
    """Let Pillow open images of so many pixels; its limit is never lowered, because other threads may need it."""
    if PILImage.MAX_IMAGE_PIXELS is not None and max_pixels > PILImage.MAX_IMAGE_PIXELS:
        PILImage.MAX_IMAGE_PIXELS = max_pixels


def check_pixels(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Check the dimensions of an image.

    Raises:
        ImageError: if it has too many pixels.
    """
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} is {over_pixels(max_pixels)}")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width} x {height} is over the limit of {MAX_SIDE} pixels a side")


def over_pixels(max_pixels: int) -> str:
    """Return what is said of an image with more pixels than that."""
    return f"over the limit of {max_pixels} pixels (--max-pixels; in Python: max_pixels)"


def exceeded_pixels(reason: str) -> int | None:
    """Return the limit for which an image was refused; None if that was not the reason.

    >>> exceeded_pixels("20000 x 20000 is over the limit of 256000000 pixels (--max-pixels; in Python: max_pixels)")
    256000000
    """
    found = _OVER_PIXELS.search(reason)
    return int(found[1]) if found else None


def check_png_data(image: PILImage.Image, size: int) -> None:
    """Check that a PNG's file can hold its pixels: deflate compresses no more than 1,032 to 1.

    Raises:
        ImageError: if it cannot, which would be found only after gigabytes were set aside.
    """
    bits = {"RGB": 24, "RGBA": 32, "LA": 16}.get(image.mode, 1)
    if image.width * image.height * bits // 8 > _DEFLATE_RATIO * size:
        raise ImageError(
            f"damaged: the file ends early: {size} bytes cannot hold {image.width} x {image.height} pixels"
        )


def read_file(path: str | Path) -> bytes:
    """Read an image file.

    Raises:
        ImageError: if it is empty or too large.
        OSError: if it cannot be read.
    """
    # No Path for each image: Python before 3.12 interns its parts, and its table of such strings never shrinks.
    check_bytes(os.stat(path).st_size)  # noqa: PTH116
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return file.readall()
