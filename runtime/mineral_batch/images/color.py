"""Any pixel format -> 8-bit RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import ImageError


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert a loaded image of any mode to RGB; transparency is composited on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_to_8_bits(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = PILImage.new("RGBA", rgba.size, "white")
        return PILImage.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_to_8_bits(image: PILImage.Image) -> PILImage.Image:
    """Scale greyscale of 16 or 32 bits or floats to 8 bits; Pillow's own conversion would clip it to white.

    Integers are on the 16-bit scale; floats on the 0..1 scale, or, where they exceed it, up to their maximum.
    """
    values = np.asarray(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ImageError("contains values that are not numbers")
    top = 65535.0 if image.mode != "F" else max(1.0, float(values.max()))
    return PILImage.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
