"""What a map is: one number per patch of the image, how much the patch speaks for a mineral.

A model exported with `mineral-export onnx --explain` gives maps beside its probabilities; JSON in the file's metadata
(`mineral.explain`) describes them. The graph's first output stays the probabilities, so every engine can still predict
with such a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from mineral_batch.errors import ContractError, plain_reason
from mineral_batch.images.geometry import visible_box

if TYPE_CHECKING:
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

Heat = NDArray[np.float32]

#: The metadata key of `MapSpec`.
MAPS_KEY = "mineral.explain"

GRAD_CAM, CROSS_ATTENTION = "grad-cam", "cross-attention"
METHODS = (GRAD_CAM, CROSS_ATTENTION)


@dataclass(frozen=True)
class MapSpec:
    """The kind of maps that a graph gives.

    Attributes:
        method: one of `METHODS`.
        grid: (rows, columns) of a map; it covers the part of the image that the model sees.
        top: K, how many labels of an image get a map.
    """

    method: str
    grid: tuple[int, int]
    top: int

    def __post_init__(self) -> None:
        numbers = (*self.grid, self.top)
        if self.method not in METHODS or len(numbers) != 3 or any(type(n) is not int or n < 1 for n in numbers):
            raise ContractError(
                f"the model's maps need a method ({' or '.join(METHODS)}), a grid of two positive numbers and a "
                f"positive top, got {self}: export it again with mineral-export onnx --explain"
            )

    def to_json(self) -> str:
        """Return one line that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MapSpec:
        """Read and check the metadata.

        Raises:
            ContractError: if the text does not describe maps.
        """
        try:
            record = json.loads(text)
            return cls(record["method"], tuple(record["grid"]), record["top"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ContractError(
                f"cannot read the model's description of its maps ({plain_reason(error)}): "
                f"export it again with mineral-export onnx --explain"
            ) from None


@dataclass(frozen=True)
class LabelMap:
    """Where the model looks for one mineral in one image.

    Attributes:
        label: the mineral.
        probability: 0..1.
        present: whether the probability reaches the model's threshold.
        heat: (rows, columns) float32, 0..1, over the part of the image that the model sees.
    """

    label: str
    probability: float
    present: bool
    heat: Heat


@dataclass(frozen=True)
class Explanation:
    """The maps of one image.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        width: of the upright image, pixels.
        height: of the upright image, pixels.
        pixels: (H, W, 3) uint8, the model's input.
        maps: the most probable label first.
    """

    path: str
    width: int
    height: int
    pixels: Pixels
    maps: tuple[LabelMap, ...]


def enlarge(heat: Heat, size: tuple[int, int]) -> Heat:
    """Interpolate a map bilinearly to `size` (width, height), its values at the patch centers; (height, width)."""
    return np.asarray(PILImage.fromarray(heat).resize(size, PILImage.Resampling.BILINEAR), np.float32)


def peak(heat: Heat, size: tuple[int, int], spec: InputSpec) -> tuple[float, float] | None:
    """Return (x, y) of the strongest patch's center in an upright image of `size` (width, height).

    None for a map of zeros. Between patches there is no information, hence the center.
    """
    if not heat.max() > 0:
        return None
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return _in_image((column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0], size, spec)


def center(size: tuple[int, int], spec: InputSpec) -> tuple[float, float]:
    """Return (x, y) of the center of what the model sees in an image of `size` (width, height)."""
    return _in_image(0.5, 0.5, size, spec)


def _in_image(across: float, down: float, size: tuple[int, int], spec: InputSpec) -> tuple[float, float]:
    """Convert fractions of what the model sees to pixels of the image."""
    left, top, right, bottom = visible_box(size, spec)
    return float(left + across * (right - left)), float(top + down * (bottom - top))
