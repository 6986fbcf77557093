"""A way to predict photographs with a model, as it is measured in a process of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.images.decode import open_rgb
from mineral_batch.images.geometry import resize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities


class Baseline:
    """A way to predict photographs.

    Attributes:
        spec: the model's input.
        paths: N files, set by `prepare`.
        pixels: (N, H, W, 3) uint8, decoded in full by `prepare`, for `from_pixels`.
    """

    spec: InputSpec

    def prepare(self, paths: Sequence[str]) -> None:
        """Set the files that `from_files` and `from_pixels` predict."""
        self.paths = list(paths)
        self.pixels = np.stack([decode_in_full(path, self.spec) for path in paths])

    def rest(self) -> None:
        """Do nothing; the reply tells about the process."""

    def describe(self) -> str:
        """Return device and precision, after a first prediction."""
        raise NotImplementedError

    def from_files(self) -> Probabilities:
        """Read, decode and predict: (N, L) float32, in the order of the files."""
        raise NotImplementedError

    def from_pixels(self) -> Probabilities:
        """Predict decoded images: (N, L) float32."""
        raise NotImplementedError


def decode_in_full(path: str, spec: InputSpec) -> Pixels:
    """Decode all of a file, then resize it, as most scripts do; (H, W, 3) uint8."""
    return resize(open_rgb(path), spec)
