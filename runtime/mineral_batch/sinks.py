"""Where results go: a table of predictions and a table of failures, each whole or not at all."""

from __future__ import annotations

import csv
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from mineral_batch.errors import DataError
from mineral_batch.images import Failure

if TYPE_CHECKING:
    from types import TracebackType

    from mineral_batch.contract import ModelContract
    from mineral_batch.pipeline import Prediction, Result

PREDICTIONS = "predictions.csv"
FAILURES = "failures.csv"
_UNFINISHED = ".unfinished"


class CsvSink:
    """`predictions.csv` and `failures.csv` in one folder, one row per picture in the order of the run.

    predictions.csv: `path`, `minerals` (those at or above their thresholds, most probable first, joined with `;`),
    then one column per label with its probability, seven significant digits. failures.csv: `path,stage,reason`;
    it is there only if something failed.

    Until the run is complete both carry the suffix `.unfinished`; after an interruption they stay so, with every
    row that was written, and an older finished table is left as it was. Names that are not UTF-8 keep their bytes.
    """

    def __init__(self, folder: str | Path, contract: ModelContract) -> None:
        self.folder = Path(folder)
        self._contract = contract
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._predictions = _open(self.folder / (PREDICTIONS + _UNFINISHED))
            self._failures = _open(self.folder / (FAILURES + _UNFINISHED))
        except OSError as error:
            raise DataError(
                f"cannot write into {self.folder}: {error.strerror}; choose another folder with -o"
            ) from None
        _write_row(self._predictions, ["path", "minerals", *contract.labels])
        _write_row(self._failures, ["path", "stage", "reason"])
        self.written = 0
        self.failed = 0

    def write(self, result: Result) -> None:
        """Append one result.

        Raises:
            DataError: if the disk is full or gone; the rows before it are safe in the `.unfinished` files.
        """
        try:
            if isinstance(result, Failure):
                _write_row(self._failures, [result.path, result.stage, result.reason])
                self.failed += 1
            else:
                _write_row(self._predictions, _row(result, self._contract))
                self.written += 1
        except OSError as error:
            raise DataError(f"cannot write into {self.folder}: {error.strerror}") from None

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._predictions.flush()
        self._failures.flush()

    def finish(self) -> None:
        """Give both tables their names: the run is complete.

        Raises:
            DataError: if the disk is full or gone; the tables then keep their `.unfinished` names.
        """
        files = (self._predictions, self._failures)
        try:
            for file in files:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            for name in (PREDICTIONS, FAILURES):
                (self.folder / (name + _UNFINISHED)).replace(self.folder / name)
            if not self.failed:
                (self.folder / FAILURES).unlink()
        except OSError as error:
            self._abandon()
            raise DataError(f"cannot write into {self.folder}: {error.strerror}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._abandon()

    def _abandon(self) -> None:
        """Close both tables under their unfinished names; what stopped the run is the error that counts."""
        for file in (self._predictions, self._failures):
            with suppress(OSError):
                file.close()


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


def _write_row(file: IO[str], row: list[str]) -> None:
    """The csv module leaves a carriage return unquoted when it does not end lines, and its own reader then fails."""
    has_return = any("\r" in field for field in row)
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(row)


def _row(prediction: Prediction, contract: ModelContract) -> list[str]:
    values = prediction.probabilities.tolist()
    return [prediction.path, ";".join(present(values, contract)), *(f"{value:.7g}" for value in values)]


def present(probabilities: list[float], contract: ModelContract) -> list[str]:
    """The labels at or above their thresholds, the most probable first."""
    found = [
        (value, label)
        for value, label, threshold in zip(probabilities, contract.labels, contract.thresholds, strict=True)
        if value >= threshold
    ]
    return [label for _, label in sorted(found, key=lambda pair: -pair[0])]
