"""Where results go: a table of predictions and a table of failures, each whole or not at all."""

from __future__ import annotations

import csv
import os
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
        self._rows = csv.writer(self._predictions, lineterminator="\n")
        self._rows.writerow(["path", "minerals", *contract.labels])
        self._bad = csv.writer(self._failures, lineterminator="\n")
        self._bad.writerow(["path", "stage", "reason"])
        self.written = 0
        self.failed = 0

    def write(self, result: Result) -> None:
        """Append one result.

        Raises:
            DataError: if the disk is full or gone; the rows before it are safe in the `.unfinished` files.
        """
        try:
            if isinstance(result, Failure):
                self._bad.writerow([result.path, result.stage, result.reason])
                self.failed += 1
            else:
                self._rows.writerow(_row(result, self._contract))
                self.written += 1
        except OSError as error:
            raise DataError(f"cannot write into {self.folder}: {error.strerror}") from None

    def flush(self) -> None:
        """Hand everything written so far to the operating system."""
        self._predictions.flush()
        self._failures.flush()

    def finish(self) -> None:
        """Give both tables their names: the run is complete."""
        for file, name in ((self._predictions, PREDICTIONS), (self._failures, FAILURES)):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            (self.folder / (name + _UNFINISHED)).replace(self.folder / name)
        if not self.failed:
            (self.folder / FAILURES).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self._predictions.close()
            self._failures.close()


def _open(path: Path) -> IO[str]:
    return path.open("w", encoding="utf-8", errors="surrogateescape", newline="")


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
