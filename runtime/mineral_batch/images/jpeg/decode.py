"""JPEGs decoded by simplejpeg.

Pillow and simplejpeg are both libjpeg-turbo, and their pixels are the same to the bit; but Pillow discards the warnings
that tell damage inside a file, and would return half an image filled with gray or shifted colors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import simplejpeg
from PIL import Image as PILImage

from mineral_batch.images.jpeg.damage import check_structure, check_warning

if TYPE_CHECKING:
    from mineral_batch.types import Pixels

_COLOR_SPACES = {"RGB": "RGBX", "L": "GRAY", "CMYK": "CMYK"}


def load_jpeg(image: PILImage.Image, content: bytes) -> PILImage.Image:
    """Decode an open JPEG.

    Args:
        image: Pillow's image, with its pixels not loaded; its size is that of the result (see `Image.draft`).
        content: the file's bytes.

    Returns:
        The image in Pillow's mode and size, with Pillow's pixels.

    Raises:
        ImageError: if it is damaged.
    """
    check_structure(content)
    pixels = _decode(content, image)
    # What simplejpeg decodes to another size or does not decode, Pillow may: it knows every kind of subsampling, and
    # refuses what is truncated. CMYK is inverted and converted by Pillow's rules.
    if pixels is None or image.mode == "CMYK" or pixels.shape[:2] != (image.height, image.width):
        image.load()
        return image
    # Pillow keeps RGB in four bytes, too, so that this copies rows as they are.
    result = PILImage.new(image.mode, image.size, None)  # not filled before it is written
    result.frombytes(pixels.data, "raw", "RGBX" if image.mode == "RGB" else "L")
    return result


def _decode(content: bytes, image: PILImage.Image) -> Pixels | None:
    """Return (H, W, 4) or (H, W, 1) uint8; None if it is left to Pillow. Raises `ImageError` if it is damaged."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            content, _COLOR_SPACES[image.mode], min_height=image.height, min_width=image.width
        )
    except ValueError as error:
        check_warning(str(error), content)
        return None
    return pixels
