"""Writing the tables of a run (`mineral_batch.results.schema`) from its results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, atomic_folder, remove_leftovers, write_errors
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.csv import CsvWriter, csv_line, encode, formula_safe_text
from mineral_batch.results.per_image import PerImageCsv
from mineral_batch.results.schema import (
    COLUMNS,
    FAILURE_COLUMNS,
    FAILURES,
    FORMATS,
    JSON_LINES,
    PARQUET,
    PARTIAL,
    PER_IMAGE,
    PREDICTIONS,
    RUN_MANIFEST,
    SCHEMA_VERSION,
    SEPARATOR,
    format_number,
)
from mineral_batch.system import pip_install
from mineral_batch.types import ExifInfo, Failure, Prediction, Result, labels_present

_ROWS_PER_GROUP = 4096
_FIX = "the results so far are saved: free some space and rerun the same command"


@dataclass(frozen=True)
class Tables:
    """What to write.

    Attributes:
        formats: of `FORMATS`; csv is always written.
        per_image: also a CSV per image.
        columns: of `COLUMNS`.
    """

    formats: tuple[str, ...] = ("csv",)
    per_image: bool = False
    columns: tuple[str, ...] = ()

    @property
    def needs_exif(self) -> bool:
        """Whether the columns include when or where images were taken."""
        return "captured" in self.columns or "gps" in self.columns

    @property
    def extra(self) -> tuple[str, ...]:
        """The columns between `minerals` and the labels, in a fixed order."""
        return tuple(name for group, names in COLUMNS.items() if group in self.columns for name in names)

    @property
    def files(self) -> tuple[str, ...]:
        """The files and folders of a run, failures.csv apart."""
        named = tuple(file for name, file in FORMATS.items() if name in self.formats or name == "csv")
        return named + (PER_IMAGE,) * self.per_image

    def including(self, folder: Path) -> Tables:
        """Return these and those that an earlier run left, which are brought up to date so that all tables agree."""
        formats = tuple(name for name, file in FORMATS.items() if name in self.formats or (folder / file).exists())
        return Tables(formats, self.per_image or (folder / PER_IMAGE).exists(), self.columns)


#: predictions.csv and failures.csv.
CSV_ONLY = Tables()


def require(tables: Tables) -> None:
    """Check before a long run that every table can be written.

    Raises:
        DataError: if a package is missing.
    """
    if PARQUET in tables.files:
        _pyarrow()


class Sink(Protocol):
    """Takes the results of a run one after the other."""

    def write(self, result: Result) -> None:
        """Take one result."""
        ...


class PredictionsCsv:
    """Writes the rows of predictions.csv."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._contract = contract
        self._extra = extra
        self._numbers = ",%.7g" * len(contract.labels) + "\n"  # no number needs quoting, and one format is fastest
        CsvWriter(file, ["path", "minerals", *extra, *contract.labels])

    def write(self, result: Result) -> None:
        """Append a row for a prediction."""
        if isinstance(result, Failure):
            return
        values = result.probabilities.tolist()
        extra = _extra(result)
        minerals = labels_present(values, self._contract.labels, self._contract.thresholds)
        leading = csv_line([result.path, SEPARATOR.join(minerals), *(extra[name] for name in self._extra)])
        self._file.write(encode(leading + self._numbers % tuple(values)))


class FailuresCsv:
    """Writes the rows of failures.csv."""

    def __init__(self, file: BinaryIO) -> None:
        self._table = CsvWriter(file, FAILURE_COLUMNS)

    def write(self, result: Result) -> None:
        """Append a row for a failure."""
        if isinstance(result, Failure):
            self._table.write([result.path, result.stage, formula_safe_text(result.reason)])


class JsonLines:
    """Writes the lines of predictions.jsonl."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._contract = contract
        self._extra = extra

    def write(self, result: Result) -> None:
        """Append one object."""
        record = self._failure(result) if isinstance(result, Failure) else self._prediction(result)
        self._file.write(json.dumps(record).encode("ascii") + b"\n")

    def _failure(self, result: Failure) -> dict[str, object]:
        return {"path": result.path, "failure": {"stage": result.stage, "reason": result.reason}}

    def _prediction(self, result: Prediction) -> dict[str, object]:
        values, extra = result.probabilities.tolist(), _extra(result)
        numbers = (float(format_number(value)) for value in values)
        return {
            "path": result.path,
            "minerals": labels_present(values, self._contract.labels, self._contract.thresholds),
            **{name: extra[name] for name in self._extra},
            "probabilities": dict(zip(self._contract.labels, numbers, strict=True)),
        }


class Parquet:
    """Writes the rows of predictions.parquet in groups, so that memory does not grow with them."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        arrow, parquet = _pyarrow()
        kinds = {"width": arrow.int32(), "height": arrow.int32(), "captured": arrow.string()}
        names = [("path", arrow.string()), ("minerals", arrow.list_(arrow.string()))]
        names += [(name, kinds.get(name, arrow.float64())) for name in extra]
        names += [(label, arrow.float32()) for label in contract.labels]
        self._schema = arrow.schema(names, metadata={"mineral_batch.schema": str(SCHEMA_VERSION)})
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._arrow = arrow
        self._contract = contract
        self._extra = extra
        self._rows: list[list[Any]] = []

    def write(self, result: Result) -> None:
        """Append a row for a prediction."""
        if isinstance(result, Failure):
            return
        values, extra = result.probabilities.tolist(), _extra(result)
        path = os.fsencode(result.path).decode("utf-8", "backslashreplace")
        minerals = labels_present(values, self._contract.labels, self._contract.thresholds)
        self._rows.append([path, minerals, *(extra[name] for name in self._extra), *values])
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns = zip(*self._rows, strict=True)
        arrays = [self._arrow.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()

    def close(self) -> None:
        """Write the last rows and the footer, without which the file is not Parquet."""
        self._flush()
        self._writer.close()


def _pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    return pyarrow, pyarrow.parquet


def write_tables(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY) -> None:
    """Write the tables of a complete run into `folder`; each gets its name when all results are in.

    Args:
        folder: exists.
        results: in the order of the rows.
        contract: labels and thresholds.
        tables: what to write besides predictions.csv and failures.csv.

    Raises:
        DataError: if the disk is full or gone, or Parquet cannot be written here; earlier tables are untouched.
    """
    with write_errors(folder, fix=_FIX):
        sweep(folder)
        (folder / RUN_MANIFEST).unlink(missing_ok=True)  # from here on it would describe other tables
        has_failures = _write_all(folder, results, contract, tables)
        (folder / PARTIAL).unlink(missing_ok=True)
        if not has_failures:
            (folder / FAILURES).unlink()


def write_partial(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY) -> None:
    """Write predictions.partial.csv: what an interrupted run has so far.

    Raises:
        DataError: if the disk is full or gone.
    """
    with write_errors(folder / PARTIAL, fix=_FIX), atomic_file(folder / PARTIAL) as file:
        sink = PredictionsCsv(file, contract, tables.extra)
        for result in results:
            sink.write(result)


def _write_all(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables) -> bool:
    """Return whether there was a failure."""
    failed = False
    with ExitStack() as stack:
        sinks = _open(stack, folder, contract, tables)
        for result in results:
            failed = failed or isinstance(result, Failure)
            for sink in sinks:
                sink.write(result)
    return failed


def _open(stack: ExitStack, folder: Path, contract: ModelContract, tables: Tables) -> list[Sink]:
    """All sinks; the stack gives the files their names."""

    def file(name: str) -> BinaryIO:
        return stack.enter_context(atomic_file(folder / name))

    sinks: list[Sink] = [PredictionsCsv(file(PREDICTIONS), contract, tables.extra), FailuresCsv(file(FAILURES))]
    if JSON_LINES in tables.files:
        sinks.append(JsonLines(file(JSON_LINES), contract, tables.extra))
    if PARQUET in tables.files:
        parquet = Parquet(file(PARQUET), contract, tables.extra)
        stack.callback(parquet.close)  # before its file gets its name
        sinks.append(parquet)
    if tables.per_image:
        sinks.append(PerImageCsv(stack.enter_context(atomic_folder(folder / PER_IMAGE)), contract))
    return sinks


def sweep(folder: Path) -> None:
    """Remove what a run that was killed while it wrote the tables left half written.

    Raises:
        OSError: if the folder cannot be written.
    """
    for name in (*FORMATS.values(), FAILURES, PARTIAL, RUN_MANIFEST, PER_IMAGE):
        remove_leftovers(folder / name)


def _extra(result: Prediction) -> dict[str, Any]:
    """All extra columns, by name."""
    exif = result.exif or ExifInfo()
    return {
        "width": result.width,
        "height": result.height,
        "captured": exif.time,
        "latitude": exif.latitude,
        "longitude": exif.longitude,
    }
