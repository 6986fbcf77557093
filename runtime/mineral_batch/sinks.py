"""The tables that a run leaves: each appears whole or not at all.

| file | content |
|---|---|
| predictions.csv | a row per predicted picture: `path`, `minerals`, then one column per label with its probability |
| failures.csv | a row per picture without a prediction: `path`, `stage`, `reason`; there only if there is one |
| predictions.jsonl | a JSON object per picture, failures among them, in the order of the files |
| per-image/ | one CSV per predicted picture, in a copy of the tree: `mineral`, `probability`, `present` |

`minerals` are the labels at or above their thresholds, most probable first, joined with `;`. Probabilities have seven
significant digits. Text is UTF-8; a file name that is not keeps its bytes in the CSVs and is escaped in the JSON.
"""

from __future__ import annotations

import csv
import io
import json
from contextlib import ExitStack
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, BinaryIO, Protocol

from mineral_batch.errors import DataError
from mineral_batch.files import whole_file
from mineral_batch.images import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mineral_batch.contract import ModelContract
    from mineral_batch.pipeline import Prediction, Result

PREDICTIONS = "predictions.csv"
FAILURES = "failures.csv"
JSON_LINES = "predictions.jsonl"
PER_IMAGE = "per-image"


class Sink(Protocol):
    """Takes the results of a run one after the other."""

    def write(self, result: Result) -> None:
        """Take one result."""
        ...


class PredictionsCsv:
    """The rows of predictions.csv."""

    def __init__(self, file: BinaryIO, contract: ModelContract) -> None:
        self._file = file
        self._contract = contract
        _write_row(file, ["path", "minerals", *contract.labels])

    def write(self, result: Result) -> None:
        """Append a row for a prediction."""
        if not isinstance(result, Failure):
            values = result.probabilities.tolist()
            minerals = ";".join(present(values, self._contract))
            _write_row(self._file, [result.path, minerals, *map(_number, values)])


class FailuresCsv:
    """The rows of failures.csv."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        _write_row(file, ["path", "stage", "reason"])

    def write(self, result: Result) -> None:
        """Append a row for a failure."""
        if isinstance(result, Failure):
            _write_row(self._file, [result.path, result.stage, result.reason])


class JsonLines:
    """The lines of predictions.jsonl."""

    def __init__(self, file: BinaryIO, contract: ModelContract) -> None:
        self._file = file
        self._contract = contract

    def write(self, result: Result) -> None:
        """Append one object."""
        record = self._failure(result) if isinstance(result, Failure) else self._prediction(result)
        self._file.write(json.dumps(record).encode("ascii") + b"\n")

    def _failure(self, result: Failure) -> dict[str, object]:
        return {"path": result.path, "failure": {"stage": result.stage, "reason": result.reason}}

    def _prediction(self, result: Prediction) -> dict[str, object]:
        values = result.probabilities.tolist()
        return {
            "path": result.path,
            "width": result.width,
            "height": result.height,
            "minerals": present(values, self._contract),
            "probabilities": {
                label: float(_number(value)) for label, value in zip(self._contract.labels, values, strict=True)
            },
        }


class PerImage:
    """One CSV per predicted picture, at its own place below a folder."""

    def __init__(self, folder: Path, contract: ModelContract) -> None:
        self._folder = folder
        self._contract = contract

    def write(self, result: Result) -> None:
        """Write one picture's file."""
        if isinstance(result, Failure):
            return
        path = self._folder / mirrored(result.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        values = zip(self._contract.labels, result.probabilities.tolist(), self._contract.thresholds, strict=True)
        with whole_file(path) as file:
            _write_row(file, ["mineral", "probability", "present"])
            for label, value, threshold in values:
                _write_row(file, [label, _number(value), str(int(value >= threshold))])


def write_tables(
    folder: Path,
    results: Iterable[Result],
    contract: ModelContract,
    *,
    json_lines: bool = False,
    per_image: bool = False,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Write the tables of a complete run into `folder`; each of the four gets its name when all results are in.

    Args:
        folder: exists.
        results: in the order of the rows.
        contract: labels and thresholds.
        json_lines: write predictions.jsonl too.
        per_image: write per-image/ too.
        progress: called after each result.

    Raises:
        DataError: if the disk is full or gone; earlier tables are as they were.
    """
    failures = 0
    try:
        _sweep(folder)
        with ExitStack() as stack:
            sinks: list[Sink] = [
                PredictionsCsv(stack.enter_context(whole_file(folder / PREDICTIONS)), contract),
                FailuresCsv(stack.enter_context(whole_file(folder / FAILURES))),
            ]
            if json_lines:
                sinks.append(JsonLines(stack.enter_context(whole_file(folder / JSON_LINES)), contract))
            if per_image:
                sinks.append(PerImage(folder / PER_IMAGE, contract))
            for result in results:
                failures += isinstance(result, Failure)
                for sink in sinks:
                    sink.write(result)
                progress()
        if not failures:
            (folder / FAILURES).unlink()
    except OSError as error:
        raise DataError(
            f"cannot write the tables into {folder}: {error.strerror or error}; what was predicted is safe: "
            f"make room and start the same command again"
        ) from None


def _sweep(folder: Path) -> None:
    """Remove what a run that was killed while it wrote the tables left half written."""
    for table in (PREDICTIONS, FAILURES, JSON_LINES):
        for stale in folder.glob(f".{table}.*.part"):
            stale.unlink(missing_ok=True)


def mirrored(name: str) -> PurePath:
    """Where a picture's own CSV lies: its path without root and drive, `..` as `__`, `.csv` behind.

    >>> mirrored("/photos/2024/a.jpg").as_posix()
    'photos/2024/a.jpg.csv'
    >>> mirrored("../a.jpg").as_posix()
    '__/a.jpg.csv'
    """
    path = PurePath(name)
    parts = ["__" if part == ".." else part for part in path.relative_to(path.anchor).parts]
    return PurePath(*parts[:-1], parts[-1] + ".csv")


def present(probabilities: Sequence[float], contract: ModelContract) -> list[str]:
    """The labels at or above their thresholds, the most probable first."""
    found = [
        (value, label)
        for value, label, threshold in zip(probabilities, contract.labels, contract.thresholds, strict=True)
        if value >= threshold
    ]
    return [label for _, label in sorted(found, key=lambda pair: -pair[0])]


def _number(value: float) -> str:
    return f"{value:.7g}"


def _write_row(file: BinaryIO, row: list[str]) -> None:
    """The csv module leaves a carriage return unquoted when it does not end lines, and its own reader then fails."""
    has_return = any("\r" in field for field in row)
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(row)
    file.write(line.getvalue().encode("utf-8", "surrogateescape"))
