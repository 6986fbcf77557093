"""`mineral-batch predict` in a process of its own, on a limited number of cores."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.predictor import Predictor
from mineral_batch.results import run as runs
from mineral_batch.system import cpu_count

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        predicted: number of images.
        failed: number of images that could not be read.
        seconds: without opening the model.
    """

    predicted: int
    failed: int
    seconds: float


class Runner:
    """An open model, made by `mineral_bench.process.isolated.Isolated`.

    Args:
        model: the ONNX file.
        backend: as for `predict`.
        batch: batch size; None for what suits the device.
        cores: use at most so many; None for all. Set before the engine is opened, which counts them.
        decode_processes: as for `Predictor`.
    """

    def __init__(
        self,
        model: Path,
        backend: str = "auto",
        batch: int | None = None,
        cores: int | None = None,
        decode_processes: int | None = None,
    ) -> None:
        if cores is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        self._predictor = Predictor(model, backend=backend, batch_size=batch, decode_processes=decode_processes)

    def cores(self) -> int:
        """Return how many CPUs the process may use."""
        return cpu_count()

    def run(self, inputs: Sequence[str]) -> RunResult:
        """Predict everything under the inputs into a folder that is thrown away."""
        with tempfile.TemporaryDirectory() as folder:
            report = runs.run(self._predictor, list(inputs), Path(folder, "results"))
        return RunResult(report.predicted, report.failed, report.seconds)
