"""This project, measured like its baselines."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch import pipeline
from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import DataError
from mineral_batch.images.discover import find_sources
from mineral_batch.types import Failure
from mineral_bench.baselines.base import Baseline
from mineral_bench.engine_only import fill, infer_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.types import Probabilities, Result


class MineralBatch(Baseline):
    """This project's pipeline on one of its backends."""

    def __init__(self, model: Path, backend: str, batch: int | None = None) -> None:
        self._backend = open_backend(model, backend, batch_size=batch)
        self._batch = batch or self._backend.batch_size
        self.spec = self._backend.contract.input

    def describe(self) -> str:
        """Return the backend's device."""
        return self._backend.device

    def prepare(self, paths: Sequence[str]) -> None:
        """Decode into the memory that the pipeline uses."""
        super().prepare(paths)
        self._batches = fill(self._backend, self.pixels, self._batch)

    def from_files(self) -> Probabilities:
        """Predict through the pipeline."""
        with closing(pipeline.run(find_sources(self.paths), self._backend, batch_size=self._batch)) as results:
            return np.stack([_probabilities(result) for result in results])

    def from_pixels(self) -> Probabilities:
        """Predict on as many threads as the backend wants."""
        return infer_all(self._backend, self._batches)


def _probabilities(result: Result) -> Probabilities:
    if isinstance(result, Failure):
        raise DataError(f"{result.path}: {result.reason}")
    return result.probabilities
