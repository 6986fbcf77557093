"""Any pixel format and color profile -> 8-bit sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage
from PIL import ImageCms

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.types import Pixels

# A profile whose colors differ from sRGB by no more than this, of 255, is sRGB in one of its many versions.
_SAME = 2
# The color space of a profile, as it is named in its header -> the mode that it applies to.
_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
# Pixels that are converted at a time, where what lies between takes several times the memory.
_BAND = 4_000_000
_UNUSED_ALPHA = frozenset({"TGA", "BMP", "DIB"})


class ColorTransform:
    """Converts 8-bit images of one color profile to sRGB.

    Args:
        profile: the ICC profile.

    Raises:
        ImageCms.PyCMSError: if it is damaged.
    """

    def __init__(self, profile: bytes) -> None:
        self.mode = _MODES.get(profile[16:20], "")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        self._transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), self.mode, "RGB")

    def apply(self, image: PILImage.Image) -> PILImage.Image:
        """Convert an image of this profile's mode, or RGB whose channels are all the same where that is `L`."""
        if image.mode == "RGB" and self.mode == "L":
            image = image.getchannel("R")
        converted = ImageCms.applyTransform(image, self._transform)
        assert converted is not None
        return converted

    def apply_to_pixels(self, pixels: Pixels) -> Pixels:
        """Convert (H, W, 3) uint8."""
        return np.asarray(self.apply(PILImage.fromarray(pixels)), dtype=np.uint8)


def color_transform(image: PILImage.Image) -> ColorTransform | None:
    """Return what converts an open image to sRGB; None if it is sRGB, or has no profile that fits its pixels."""
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes):
        return None
    transform = _transform(profile)
    is_gray = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    mode = "L" if is_gray else "CMYK" if image.mode == "CMYK" else "RGB"
    return transform if transform is not None and transform.mode == mode else None


@lru_cache(maxsize=32)
def _transform(profile: bytes) -> ColorTransform | None:
    # A damaged profile, which is metadata, costs no image. lcms and Pillow raise several kinds of errors.
    try:
        transform = ColorTransform(profile)
    except Exception:
        return None
    if transform.mode == "CMYK":
        return transform
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    if transform.mode == "L":
        colors[..., 1:] = colors[..., :1]
    difference = np.abs(transform.apply_to_pixels(colors).astype(int) - colors).max()
    return transform if difference > _SAME else None


def to_rgb(image: PILImage.Image, cmyk: ColorTransform | None = None) -> PILImage.Image:
    """Convert a loaded image of any mode to RGB, in the color space of its profile; transparency becomes white.

    Args:
        image: the image.
        cmyk: how CMYK is converted, which leads to sRGB; None for the plain formula.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "CMYK" and cmyk is not None:
        return _by_bands(image, cmyk.apply)
    if image.mode.startswith("I") or image.mode == "F":
        scale = 255.0 / _white(image)
        return _by_bands(image, lambda band: _scaled_to_8_bits(band, scale))
    if image.has_transparency_data and not _ignores_alpha(image):
        return _by_bands(image, _on_white)
    return image.convert("RGB")


def _by_bands(image: PILImage.Image, convert: Callable[[PILImage.Image], PILImage.Image]) -> PILImage.Image:
    """Convert an image pixel by pixel, some rows at a time: what lies between needs little memory then."""
    rows = max(1, _BAND // image.width)
    if rows >= image.height:
        return convert(image)
    result = PILImage.new("RGB", image.size)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(convert(band), (0, top))
    return result


def _on_white(image: PILImage.Image) -> PILImage.Image:
    rgba = image.convert("RGBA")
    white = PILImage.new("RGBA", rgba.size, "white")
    return PILImage.alpha_composite(white, rgba).convert("RGB")


def _white(image: PILImage.Image) -> float:
    """Return the value of white in grayscale of 16 or 32 bits or floats.

    Integers are on the 16-bit scale; floats on the 0..1 scale, or, where they exceed it, up to their maximum.
    """
    if image.mode != "F":
        return 65535.0
    rows = max(1, _BAND // image.width)
    highest = 1.0
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if not np.isfinite(values).all():
            raise ImageError("contains values that are not numbers")
        highest = max(highest, float(values.max()))
    return highest


def _scaled_to_8_bits(image: PILImage.Image, scale: float) -> PILImage.Image:
    """Multiply the values and round them; Pillow's own conversion would clip them to white."""
    values = np.asarray(image, dtype=np.float32)
    return PILImage.fromarray(np.clip(values * scale + 0.5, 0, 255).astype(np.uint8)).convert("RGB")


def _ignores_alpha(image: PILImage.Image) -> bool:
    """Return whether the fourth channel of a TGA or BMP is unused, which many programs leave at zero."""
    if image.format not in _UNUSED_ALPHA or image.mode not in ("RGBA", "LA"):
        return False
    return image.getchannel("A").getextrema() == (0, 0)
