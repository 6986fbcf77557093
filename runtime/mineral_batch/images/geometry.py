"""Orientation and size: how an image is turned upright and resized to the model's input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

if TYPE_CHECKING:
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

#: (left, top, right, bottom) in pixels, with fractions.
Box = tuple[float, float, float, float]

_FILTERS = {"bilinear": PILImage.Resampling.BILINEAR, "bicubic": PILImage.Resampling.BICUBIC}

#: EXIF orientation (tag 274) -> what makes the image upright; 1 and unknown values need nothing.
ORIENTATION_TAG = 274
UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}
#: The transpositions that exchange width and height.
SIDEWAYS = (UPRIGHT[5], UPRIGHT[6], UPRIGHT[7], UPRIGHT[8])


def upright_transpose(image: PILImage.Image) -> PILImage.Transpose | None:
    """Return what makes an open image upright, by its EXIF; None for nothing. Damaged EXIF counts as none."""
    if image.format == "HEIF":  # its decoder turns it by its own boxes; the EXIF tag is only information
        return None
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:
        return None
    return UPRIGHT.get(value) if isinstance(value, int) else None


def resize(image: PILImage.Image, spec: InputSpec) -> Pixels:
    """Resize an upright RGB image to the model's input, antialiased: (spec.height, spec.width, 3) uint8."""
    box = visible_box(image.size, spec)
    resized = image.resize((spec.width, spec.height), _FILTERS[spec.interpolation], box=box)
    return np.asarray(resized, dtype=np.uint8)


def visible_box(size: tuple[int, int], spec: InputSpec) -> Box:
    """Return the part of an upright image of `size` (width, height) that the model sees."""
    if spec.resize == "squash":
        return 0.0, 0.0, float(size[0]), float(size[1])
    return _central_box(size, (spec.width, spec.height))


def _central_box(size: tuple[int, int], target: tuple[int, int]) -> Box:
    """Return the largest central part that has the aspect ratio of `target` (width, height)."""
    width, height = size
    scale = min(width / target[0], height / target[1])
    across, down = target[0] * scale, target[1] * scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down
