"""Do two artefacts give the same answers?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mineral_batch.errors import DataError, MineralError
from mineral_batch.images import Failure, load_image
from mineral_batch.sources import find_images
from mineral_train.synth import generate

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mineral_batch.contract import InputSpec
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities

# Batches of several sizes, so that a graph that fixed its batch axis is caught.
BATCHES = (1, 4, 3)
PICTURES = sum(BATCHES)


class ParityError(MineralError):
    """Two artefacts that should answer alike do not."""


class Answers(Protocol):
    """Anything that maps (N, H, W, 3) uint8 to (N, L) float32 probabilities."""

    def __call__(self, pixels: Pixels, /) -> Probabilities:
        """Answer one batch."""
        ...


@dataclass(frozen=True)
class Parity:
    """How far two artefacts' probabilities lie apart over the same pictures.

    Attributes:
        largest: of all absolute differences.
        mean: absolute difference.
        pictures: how many were compared.
        what: the pictures, in words.
    """

    largest: float
    mean: float
    pictures: int
    what: str

    def __str__(self) -> str:
        return (
            f"largest difference of a probability {self.largest:.2g}, mean {self.mean:.2g}, "
            f"over {self.pictures} {self.what}"
        )

    def require(self, tolerance: float) -> None:
        """Raise `ParityError` where the largest difference exceeds `tolerance` or is not a number."""
        if not self.largest <= tolerance:
            raise ParityError(f"nothing was written: {self}, beyond the tolerance of {tolerance:g}")


def compare(one: Answers, other: Answers, pixels: Pixels, what: str) -> Parity:
    """Both artefacts' answers to `pixels` (N, H, W, 3), given to each in batches of different sizes."""
    differences = np.concatenate(
        [np.abs(one(batch).astype(np.float64) - other(batch)) for batch in _in_batches(pixels)], axis=None
    )
    return Parity(float(differences.max()), float(differences.mean()), len(pixels), what)


def _in_batches(pixels: Pixels) -> list[Pixels]:
    starts = np.cumsum(BATCHES)[:-1]
    return [batch for batch in np.split(pixels, starts) if len(batch)]


def photographs(inputs: Iterable[str | Path], spec: InputSpec, count: int = PICTURES) -> Pixels:
    """The first `count` readable photographs under `inputs`, (N, H, W, 3) uint8.

    Raises:
        DataError: if there is none.
    """
    pixels: list[Pixels] = []
    for path in find_images(inputs):
        image = path if isinstance(path, Failure) else load_image(path, spec)
        if not isinstance(image, Failure):
            pixels.append(image.pixels)
        if len(pixels) == count:
            break
    if not pixels:
        raise DataError(f"no readable photograph under {', '.join(map(str, inputs))}")
    return np.stack(pixels)


def synthetic(spec: InputSpec, count: int = PICTURES) -> Pixels:
    """`count` pictures from `mineral-train synth`'s generator at the model's input size, (N, H, W, 3) uint8."""
    side = max(spec.height, spec.width)
    pictures = [generate(index, seed=0, size=side).pixels for index in range(count)]
    return np.stack(pictures)[:, : spec.height, : spec.width]
