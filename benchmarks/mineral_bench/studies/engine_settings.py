"""The settings of the processor's engines against the others that they could have, end to end on photographs.

    python -m mineral_bench.studies.engine_settings MODEL.onnx FOLDER [PICTURES]

What `mineral_batch.engines.onnx_cpu` and `.openvino` do by default was chosen by this table.
"""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mineral_batch.engines.base import EngineOptions
from mineral_batch.engines.onnx_cpu import OnnxCpuEngine, open_cpu
from mineral_batch.engines.openvino import open_openvino
from mineral_batch.images.discover import find_sources
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.pipeline import run
from mineral_bench.measure import Plan, interleave, median, ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.engines.base import Backend
    from mineral_batch.types import Failure, Pixels, Probabilities, Source

B = TypeVar("B", bound="Backend")

_PICTURES = 32
_REFERENCE = "ONNX Runtime as it comes, batches of 8"


class _Batched(OnnxCpuEngine):
    """The whole batch in one call of a session that spreads every layer over all cores."""

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        probabilities: Probabilities = self._session.run(self._outputs, {self._input: pixels})[0]
        return probabilities


def candidates(model: Path) -> dict[str, Backend]:
    """Name -> open engine."""
    return {
        _REFERENCE: _batched(model, spins=True),
        "the same without spinning": _batched(model, spins=False),
        "ONNX Runtime, one picture per thread, one worker": _with_workers(open_cpu(model), 1),
        "onnx-cpu: one picture per thread, a worker per core": open_cpu(model),
        "openvino --precision float32": open_openvino(model, EngineOptions(precision="float32")),
        "openvino: a stream per core": open_openvino(model, EngineOptions()),
        "OpenVINO, one worker": _with_workers(open_openvino(model, EngineOptions()), 1),
    }


def _batched(model: Path, *, spins: bool) -> _Batched:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    engine = _with_workers(_Batched(session, read_contract(model), onnxruntime.__version__), 1)
    engine.batch_size = 8
    return engine


def _with_workers(backend: B, workers: int) -> B:
    backend.workers = workers
    return backend


def table(backends: Mapping[str, Backend], sources: Sequence[Source | Failure]) -> list[str]:
    """One line of Markdown for each engine, after the head."""
    works = {name: partial(_predict, backend, sources) for name, backend in backends.items()}
    rounds = interleave(works, Plan(least=4, most=8, seconds=90, warm_up=1))
    lines = ["| | pictures a second | ratio |", "|---|---|---|"]
    for name, seconds in rounds.seconds.items():
        speed = median(seconds).per(len(sources))
        lines.append(f"| {name} | {speed} | {ratio(seconds, rounds.seconds[_REFERENCE])} |")
    return [*lines, "", f"{len(sources)} photographs, {rounds}."]


def _predict(backend: Backend, sources: Sequence[Source | Failure]) -> None:
    for _ in run(sources, backend, batch_size=backend.batch_size):
        pass


def _main() -> None:
    model, folder, *count = sys.argv[1:]
    pictures = islice(find_sources([folder]), int(count[0]) if count else _PICTURES)
    print("\n".join(table(candidates(Path(model)), list(pictures))))  # noqa: T201 - this is the command's output


if __name__ == "__main__":
    _main()
