"""How far maps can be believed: the pointing game against masks, deletion and insertion."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter, UnidentifiedImageError

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.explain.maps import center, enlarge, peak
from mineral_batch.images.geometry import visible_box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mineral_batch.explain.maps import Heat
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities

    Infer = Callable[[Pixels], Probabilities]  # (N, H, W, 3) uint8 to (N, L)

Bools = NDArray[np.bool_]

_STEPS = 16


class Pointing(NamedTuple):
    """One map's turn in the pointing game (Zhang et al. 2016, section 4.1), without their tolerance of 15 pixels.

    Attributes:
        hit: whether the map's peak lies on the mineral; False for a map of zeros.
        center: whether the center of the image lies on it: the score of a map without information.
        anywhere: the mineral's share of what the model sees: the score of a random point.
    """

    hit: bool
    center: bool
    anywhere: float


class Score(NamedTuple):
    """One map against its mask; deletion and insertion as (area of this map, area of `center_map`)."""

    mineral: str
    pointing: Pointing
    deletion: tuple[float, float] | None
    insertion: tuple[float, float] | None


def pointing_game(heat: Heat, mask: Bools, spec: InputSpec) -> Pointing:
    """Play one turn.

    Args:
        heat: (rows, columns).
        mask: (height, width) of the upright image, True on the mineral.
        spec: the model's input.
    """
    size = mask.shape[1], mask.shape[0]
    left, top, right, bottom = (round(edge) for edge in visible_box(size, spec))
    at = peak(heat, size, spec)
    return Pointing(
        hit=at is not None and _is_on(mask, at),
        center=_is_on(mask, center(size, spec)),
        anywhere=float(mask[top:bottom, left:right].mean()),
    )


def _is_on(mask: Bools, at: tuple[float, float]) -> bool:
    x, y = at
    return bool(mask[min(int(y), mask.shape[0] - 1), min(int(x), mask.shape[1] - 1)])


def read_masks(path: Path) -> dict[str, Bools]:
    """Read a mask of `mineral-train synth`: mineral -> (height, width), for the minerals that the image shows.

    The mask is a PNG with a palette whose text `Values` reads `0=none;1=agate;...`.

    Raises:
        DataError: if the file is not such a mask.
    """
    try:
        with PILImage.open(path) as image:
            text, mode, values = str(image.info.get("Values", "")), image.mode, np.array(image)
    except UnidentifiedImageError:
        raise DataError(f"cannot read the mask {path}: it is no image") from None
    except OSError as error:
        raise DataError(f"cannot read the mask {path}: {plain_reason(error)}") from None
    names = dict(entry.split("=", 1) for entry in text.split(";") if "=" in entry)
    if mode != "P" or not names:
        raise DataError(f"{path} is not a mask of mineral-train synth: it needs a palette and a text `Values`")
    seen = {int(value) for value in np.unique(values)} - {0}
    return {names[str(value)]: values == value for value in sorted(seen) if str(value) in names}


def deletion(infer: Infer, pixels: Pixels, heat: Heat, label: int, spec: InputSpec) -> float:
    """Measure how fast a probability falls as the image is painted over, strongest patch first; lower is better.

    The area under the curve of Petsiuk et al. 2018 (RISE, section 4.3), 0..1, in 16 steps. The paint is the mean
    color on which the model's input is centered.

    Args:
        infer: the model.
        pixels: (H, W, 3) uint8, the image at the model's input size.
        heat: (rows, columns).
        label: index.
        spec: the model's input.
    """
    gray = np.broadcast_to(np.array([255 * mean for mean in spec.mean]).round().astype(np.uint8), pixels.shape)
    return _area(infer, pixels, gray, heat, label)


def insertion(infer: Infer, pixels: Pixels, heat: Heat, label: int, spec: InputSpec) -> float:
    """Measure how fast a probability rises as a blurred image is sharpened, strongest patch first; higher is better.

    As `deletion`. The blur is Gaussian with a radius of a twentieth of the width, so that neither the start nor the
    edges of what is inserted look like another object.
    """
    blur = ImageFilter.GaussianBlur(spec.width / 20)
    return _area(infer, np.asarray(PILImage.fromarray(pixels).filter(blur)), pixels, heat, label)


def _area(infer: Infer, start: Pixels, end: Pixels, heat: Heat, label: int) -> float:
    """Integrate a label's probability while `start` turns into `end` in the order of the map."""
    height, width, _ = start.shape
    order = np.argsort(-enlarge(heat, (width, height)), axis=None, kind="stable")
    rank = np.empty(order.size)
    rank[order] = np.arange(order.size) / order.size
    changed = rank.reshape(1, height, width, 1) < np.linspace(0, 1, _STEPS + 1).reshape(-1, 1, 1, 1)
    curve = infer(np.where(changed, end, start))[:, label]
    return float(np.trapezoid(curve, dx=1 / _STEPS))


def center_map(grid: Sequence[int]) -> Heat:
    """Return a map (rows, columns) that is strongest in the center: the baseline, which knows nothing of the image."""
    rows, columns = (np.abs(np.linspace(-1, 1, 2 * n + 1)[1::2]) for n in grid)
    heat: Heat = (1 - np.hypot(rows[:, None], columns[None, :]) / np.sqrt(2)).astype(np.float32)
    return heat


def mean_scores(scores: Sequence[Score], without_map: int) -> dict[str, Any]:
    """Average the scores over all maps and per mineral, ready for JSON.

    Args:
        scores: at least one.
        without_map: how many minerals of the masks the model gave no map.
    """
    minerals = sorted({score.mineral for score in scores})
    return {
        **_means(scores),
        "minerals_without_map": without_map,
        "minerals": {name: _means([score for score in scores if score.mineral == name]) for name in minerals},
    }


def _means(scores: Sequence[Score]) -> dict[str, Any]:
    """Average; `off_center` counts only minerals away from the center, where the baseline scores 0."""
    off_center = [score.pointing.hit for score in scores if not score.pointing.center]
    means: dict[str, Any] = {
        "pointing": np.mean([score.pointing.hit for score in scores]),
        "pointing_off_center": np.mean(off_center) if off_center else None,
        "pointing_center": np.mean([score.pointing.center for score in scores]),
        "pointing_anywhere": np.mean([score.pointing.anywhere for score in scores]),
    }
    for name in ("deletion", "insertion"):
        areas = [pair for score in scores if (pair := getattr(score, name)) is not None]
        if areas:
            means[name], means[f"{name}_center"] = np.mean(areas, axis=0)
    rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in means.items()}
    return {"maps": len(scores), "maps_off_center": len(off_center), **rounded}
