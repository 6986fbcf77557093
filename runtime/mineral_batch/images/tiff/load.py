"""A TIFF's pixels, by our own reader or by Pillow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import ImageError
from mineral_batch.images.budget import decode_budget
from mineral_batch.images.geometry import ORIENTATION_TAG, UPRIGHT
from mineral_batch.images.limits import MAX_PIXELS, check_pixels
from mineral_batch.images.tiff.read import read, sample_format

if TYPE_CHECKING:
    from mineral_batch.images.tiff.pages import Page


_PROFILE_TAG = 34675


def open_tiff(content: bytes, page: Page, max_pixels: int = MAX_PIXELS) -> PILImage.Image:
    """Decode an image by our own reader, upright; see `can_read`.

    Raises:
        ImageError: if it is damaged or too large.
    """
    check_pixels(page.number(256), page.number(257), max_pixels)
    # The samples, and half as much again for the 8-bit image and what lies between.
    size = page.pixels * page.number(277, 1) * (page.number(258, 1) + 16) // 8
    with decode_budget().reserve(size):
        image = read(content, page)
    transpose = UPRIGHT.get(page.number(ORIENTATION_TAG, 1))
    upright = image if transpose is None else image.transpose(transpose)
    if profile := page.tags.get(_PROFILE_TAG):
        upright.info["icc_profile"] = bytes(profile)
    return upright


def load_tiff(image: PILImage.Image, page: Page) -> PILImage.Image:
    """Decode an open TIFF by Pillow, upright.

    Raises:
        ImageError: if Pillow would get its pixel format wrong.
    """
    if page.number(284, 1) == 2 and page.number(258, 1) > 8:
        raise ImageError("a TIFF with compressed planes of more than 8 bits is not supported")
    image.load()
    return _scaled(image, page) if image.mode.startswith("I") or image.mode == "F" else image


def _scaled(image: PILImage.Image, page: Page) -> PILImage.Image:
    """Scale what Pillow has decoded by the file's own number format."""
    format_ = sample_format(page)
    values = np.asarray(image)
    if (format_.kind, format_.bits) == (1, 32):  # Pillow's mode for them is signed
        values = values.view(np.uint32)
    return PILImage.fromarray(format_.to_8_bits(values))
