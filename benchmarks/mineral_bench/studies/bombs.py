"""What small files that promise gigabytes cost a whole run of the command: memory of all its processes, and time."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from mineral_batch.errors import DataError
from mineral_bench.bombs import BOMBS
from mineral_bench.process.usage import memory_mib
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_SECONDS_BETWEEN_SAMPLES = 0.02


@dataclass(frozen=True)
class Blast:
    """One run on one bomb.

    Attributes:
        bomb: its name.
        kib: of its files.
        decoders: `2 threads`, for example.
        mib: the most memory that the command's processes held together.
        seconds: that the command took, with the opening of the model.
        answer: what its images became: the reasons in failures.csv, each once, and the number of predictions.
    """

    bomb: str
    kib: float
    decoders: str
    mib: float
    seconds: float
    answer: str


def measure(
    model: Path, decoders: Sequence[tuple[str, int]], bombs: Iterable[str] = tuple(BOMBS), backend: str = "onnx-cpu"
) -> Iterator[Blast]:
    """Run the command on each bomb with each number of decoders, each in a fresh process.

    Args:
        model: an ONNX file.
        decoders: (`threads` or `processes`, how many).
        bombs: names in `mineral_bench.bombs.BOMBS`.
        backend: engine.

    Raises:
        DataError: if there is no such bomb.
    """
    for name in bombs:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "photographs")
            folder.mkdir()
            _writer(name)(folder)
            for kind, count in decoders:
                out = Path(temporary, f"{count} {kind}")
                options = ["-m", str(model), "--backend", backend, f"--decode-{kind}", str(count), "-o", str(out), "-q"]
                mib, seconds = _watched([*options, *map(str, sorted(folder.iterdir()))])
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield Blast(name, size / 2**10, f"{count} {kind}", mib, seconds, _answer(out))


def _writer(name: str) -> Callable[[Path], None]:
    try:
        return BOMBS[name]
    except KeyError:
        raise DataError(f"no bomb is called '{name}'; there are {', '.join(BOMBS)}") from None


def _watched(arguments: Sequence[str]) -> tuple[float, float]:
    """Run the command; return the peak MiB of its processes, and seconds."""
    start, peak = time.perf_counter(), 0.0
    program = [sys.executable, "-m", "mineral_batch", "predict", *arguments]
    with subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:  # noqa: S603
        while process.poll() is None:
            peak = max(peak, memory_mib(process.pid))
            time.sleep(_SECONDS_BETWEEN_SAMPLES)
    return peak, time.perf_counter() - start


def _answer(out: Path) -> str:
    failures, predictions = _rows(out / "failures.csv"), _rows(out / "predictions.csv")
    predicted = [f"{len(predictions)} predicted"] if predictions else []
    return "; ".join([*predicted, *dict.fromkeys(row["reason"] for row in failures)]) or "no tables"


def _rows(table: Path) -> list[dict[str, str]]:
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(blasts: Sequence[Blast]) -> Table:
    """Return one row per run."""
    rows = [(one.bomb, one.kib, one.decoders, f"{one.mib:.0f}", one.seconds, one.answer) for one in blasts]
    return Table("Bombs", ("file", "KiB", "decoders", "peak MiB, all processes", "seconds", "answer"), rows)


def figures(blasts: Sequence[Blast]) -> list[dict[str, Any]]:
    """Return the figures for JSON."""
    return [asdict(blast) for blast in blasts]
