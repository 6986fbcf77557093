"""A map drawn over its photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as PILImage

from mineral_batch.explain.maps import enlarge
from mineral_batch.images.geometry import visible_box

if TYPE_CHECKING:
    from mineral_batch.explain.maps import Heat
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

# matplotlib's inferno at ten even steps: its lightness grows evenly, so it reads well in gray and to the color-blind.
_INFERNO = np.array(
    [
        (0, 0, 4), (27, 12, 66), (75, 12, 107), (120, 28, 109), (165, 44, 96),
        (207, 68, 70), (237, 105, 37), (251, 154, 6), (247, 208, 60), (252, 255, 164),
    ],
    dtype=np.float32,
)  # fmt: skip
# The map's opacity where it is 0 and where it is 1: the photograph shows through everywhere.
_FAINTEST, _STRONGEST = 0.35, 0.65


def colors(heat: Heat) -> Pixels:
    """Look up the color map: (...) float32, 0..1, to (..., 3) uint8 RGB."""
    place = np.clip(heat, 0, 1) * (len(_INFERNO) - 1)
    low = np.minimum(place.astype(np.intp), len(_INFERNO) - 2)
    part = (place - low)[..., None]
    mixed: Pixels = (_INFERNO[low] * (1 - part) + _INFERNO[low + 1] * part).round().astype(np.uint8)
    return mixed


def overlay(image: PILImage.Image, heat: Heat, spec: InputSpec) -> PILImage.Image:
    """Draw a map over an upright photograph of any size, on the part that the model saw.

    Args:
        image: RGB.
        heat: (rows, columns), 0..1.
        spec: the model's input; what its resizing rule crops off stays unchanged.
    """
    left, top, right, bottom = (round(edge) for edge in visible_box(image.size, spec))
    seen = image.crop((left, top, right, bottom))
    large = enlarge(heat, seen.size)
    share = (_FAINTEST + (_STRONGEST - _FAINTEST) * large)[..., None]
    mixed = np.asarray(seen) * (1 - share) + colors(large) * share
    result = image.copy()
    result.paste(PILImage.fromarray(mixed.round().astype(np.uint8)), (left, top))
    return result
