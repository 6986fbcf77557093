"""A run into an output folder: resumable, one at a time, and with a certificate of what was done."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

from mineral_batch.errors import DataError
from mineral_batch.files import whole_file
from mineral_batch.images import Failure
from mineral_batch.journal import Journal
from mineral_batch.sinks import write_tables
from mineral_batch.sources import find_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mineral_batch.pipeline import Result
    from mineral_batch.predictor import Predictor
    from mineral_batch.sources import Source

CERTIFICATE = "run.json"


@dataclass(frozen=True)
class Options:
    """What a run leaves behind beside the two tables.

    Attributes:
        json_lines: predictions.jsonl.
        per_image: a CSV per picture.
        restart: do everything again, whatever an earlier run did.
    """

    json_lines: bool = False
    per_image: bool = False
    restart: bool = False


@dataclass(frozen=True)
class Report:
    """What a complete run did.

    Attributes:
        predicted: pictures with a prediction, earlier runs' included.
        failed: pictures without.
        reused: of both, how many an earlier run had done.
        seconds: of this run, without opening the model.
    """

    predicted: int
    failed: int
    reused: int
    seconds: float


def run(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    folder: Path,
    options: Options = Options(),
    *,
    seen: Callable[[Result | None], object] = lambda result: None,
) -> Report:
    """Predict everything under `inputs` and write the tables, doing only what earlier runs into `folder` did not.

    Stopped at any moment, even by a kill, and started again, it ends with the same tables as one that was not.

    Args:
        predictor: the open model.
        inputs: see `mineral_batch.sources.find_sources`.
        folder: where the tables come; made if absent.
        options: what else to write.
        seen: called with each new result, and with None for each source that an earlier run had done.

    Raises:
        DataError: if there is nothing to do, another run is writing there, an input has vanished, the disk is full, or
            an earlier run was made with another model or other options.
        BackendError: if the engine fails. What was predicted before either is kept.
    """
    sources = _not_empty(find_sources(inputs), inputs)
    started = time.monotonic()
    with Journal(folder, fingerprint(predictor), restart=options.restart) as journal:
        done = _predict(predictor, journal, sources, inputs, seen)
        journal.commit()
        write_tables(
            folder,
            journal.results(),
            predictor.contract,
            json_lines=options.json_lines,
            per_image=options.per_image,
        )
        predicted, failed = journal.counts()
        report = Report(predicted, failed, predicted + failed - done, time.monotonic() - started)
        _certify(folder, predictor, inputs, report, done)
    return report


def _not_empty(sources: Iterator[Source | Failure], inputs: Sequence[str | Path]) -> Iterator[Source | Failure]:
    """The same sources, once it is known that there is one: a mistyped name must not leave a folder behind."""
    first = next(sources, None)
    if first is None:
        raise DataError(f"no photographs under {', '.join(map(str, inputs))}: no file has the suffix of a picture")

    def again() -> Iterator[Source | Failure]:
        yield first
        yield from sources

    return again()


def _predict(
    predictor: Predictor,
    journal: Journal,
    sources: Iterator[Source | Failure],
    inputs: Sequence[str | Path],
    seen: Callable[[Result | None], object],
) -> int:
    """Predict what the journal lacks; gives how many that were."""
    roots = _existing(inputs)
    done = 0
    for result in predictor.predict(journal.unfinished(sources, seen)):
        if isinstance(result, Failure) and result.stage == "read":
            _require_present(roots, journal)
        journal.add(result)
        done += 1
        seen(result)
    return done


def _existing(inputs: Sequence[str | Path]) -> list[Path]:
    from pathlib import Path

    return [path for path in map(Path, inputs) if path.exists()]


def _require_present(roots: list[Path], journal: Journal) -> None:
    """A file that cannot be read is a failure; an input that is gone (a drive unplugged) ends the run."""
    for root in roots:
        if not root.exists():
            raise DataError(
                f"{root} is no longer there; what was predicted is safe in {journal.path}: "
                f"bring it back and start the same command again"
            )


def fingerprint(predictor: Predictor) -> dict[str, str]:
    """Everything that changes a probability: results made under different ones are not mixed."""
    return {
        "model": model_digest(predictor.model)[:16],
        "engine": f"{predictor.backend} {_version('onnxruntime', 'onnxruntime-gpu')}",
        "decoder": f"Pillow {PIL.__version__}, {'in full' if predictor.exact else 'scaled'}",
    }


def model_digest(path: Path) -> str:
    """SHA-256 of a model file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _version(*distributions: str) -> str:
    for name in distributions:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def _certify(folder: Path, predictor: Predictor, inputs: Sequence[str | Path], report: Report, done: int) -> None:
    """Write run.json: with what, on what and how fast the tables beside it were made."""
    certificate: dict[str, Any] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "inputs": [str(given) for given in inputs],
        "model": {
            "name": predictor.contract.name,
            "file": str(predictor.model),
            "sha256": model_digest(predictor.model),
            "labels": len(predictor.contract.labels),
        },
        "engine": {"backend": predictor.backend, "device": predictor.device, "batch_size": predictor.batch_size},
        "pictures": {"predicted": report.predicted, "failed": report.failed, "from_earlier_runs": report.reused},
        "seconds": round(report.seconds, 3),
        "pictures_per_second": round(done / report.seconds, 2) if done else None,
        "versions": {
            "mineral-batch": _version("mineral-batch"),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pillow": PIL.__version__,
            "onnxruntime": _version("onnxruntime", "onnxruntime-gpu"),
        },
        "machine": {"system": platform.platform(), "processor": platform.machine()},
    }
    with whole_file(folder / CERTIFICATE) as file:
        file.write(json.dumps(certificate, indent=2).encode("ascii") + b"\n")
