"""Writing the tables of a run (`mineral_batch.results.schema`) from its results."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from mineral_batch.files import atomic_file, atomic_folder, remove_leftovers, write_errors
from mineral_batch.minerals.levels import Levels
from mineral_batch.minerals.table import Level, load_table
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.csv import CsvWriter, csv_line, decimal_comma, encode, formula_safe_text
from mineral_batch.results.parquet import Parquet, import_pyarrow
from mineral_batch.results.per_image import PerImageCsv
from mineral_batch.results.rows import Sink, TableCounts, TableRow, extra_values, table_rows
from mineral_batch.results.schema import (
    ANSWER,
    COLUMNS,
    CSV_EXCEL,
    DAMAGED_COLUMN,
    FAILURE_COLUMNS,
    FAILURES,
    FORMATS,
    JSON_LINES,
    PARQUET,
    PARTIAL,
    PER_IMAGE,
    PREDICTIONS,
    RECORD,
    RUN_MANIFEST,
    SEPARATOR,
    SPECIMENS,
    format_number,
)
from mineral_batch.results.specimens import SpecimensCsv, specimen_rule
from mineral_batch.types import Failure, Result

_FIX = "the results so far are saved: free some space and rerun the same command"


@dataclass(frozen=True)
class Tables:
    """What to write.

    Attributes:
        formats: of `FORMATS`; csv is always written.
        per_image: also a CSV per image.
        columns: of `COLUMNS`.
        prevalence: correct the probabilities for the prevalences in this file, or `estimate` them from the results.
        decimals: round the probabilities to so many; None for seven significant digits.
        level: add the column `answer`, with names up to this level.
        specimen: write specimens.csv by this rule (`mineral_batch.results.specimens`).
        minerals: file with the table of minerals that says what is broader; None for the package's.
    """

    formats: tuple[str, ...] = ("csv",)
    per_image: bool = False
    columns: tuple[str, ...] = ()
    prevalence: str | None = None
    decimals: int | None = None
    level: Level | None = None
    specimen: str | None = None
    minerals: str | None = None

    def levels(self, labels: Sequence[str]) -> Levels | None:
        """The broader names over the labels; None where they are not asked for."""
        return None if self.level is None else Levels(labels, self.level, load_table(self.minerals))

    @property
    def needs_exif(self) -> bool:
        """Whether the columns include when or where images were taken."""
        return "captured" in self.columns or "gps" in self.columns

    @property
    def needs_familiarity(self) -> bool:
        """Whether the columns include the familiarity of images."""
        return "familiarity" in self.columns

    @property
    def extra(self) -> tuple[str, ...]:
        """The columns between `minerals` and the labels, in a fixed order."""
        answer = () if self.level is None else (ANSWER,)
        return answer + tuple(name for group, names in COLUMNS.items() if group in self.columns for name in names)

    @property
    def files(self) -> tuple[str, ...]:
        """The files and folders of a run, failures.csv apart."""
        named = tuple(file for name, file in FORMATS.items() if name in self.formats or name == "csv")
        return named + (SPECIMENS,) * (self.specimen is not None) + (PER_IMAGE,) * self.per_image

    @property
    def replaced(self) -> tuple[str, ...]:
        """The files that a run writes, or removes where it has nothing to write into them."""
        return tuple(dict.fromkeys((*self.files, FAILURES, SPECIMENS, PARTIAL)))

    def marking_damaged(self) -> Tables:
        """Return these with the column `damaged`."""
        return self if DAMAGED_COLUMN in self.columns else replace(self, columns=(*self.columns, DAMAGED_COLUMN))

    def including(self, folder: Path) -> Tables:
        """Return these and those that an earlier run left, which are brought up to date so that all tables agree."""
        formats = tuple(name for name, file in FORMATS.items() if name in self.formats or (folder / file).exists())
        return replace(self, formats=formats, per_image=self.per_image or (folder / PER_IMAGE).exists())


#: predictions.csv and failures.csv.
CSV_ONLY = Tables()


def require(tables: Tables) -> None:
    """Check before a long run that every table can be written.

    Raises:
        DataError: if a package is missing, the rule for specimens is not one, or the table of minerals cannot be read.
    """
    if PARQUET in tables.files:
        import_pyarrow()
    if tables.specimen is not None:
        specimen_rule(tables.specimen)
    load_table(tables.minerals)


class PredictionsCsv:
    """Writes the rows of predictions.csv."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._extra = extra
        self._contract = contract
        self._numbers = ",%.7g" * len(contract.labels) + "\n"  # no number needs quoting, and one format is fastest
        CsvWriter(file, ["path", "minerals", *extra, *contract.labels])

    def write(self, row: TableRow | Failure) -> None:
        """Append a row for a prediction."""
        if isinstance(row, Failure):
            return
        leading = csv_line(
            [row.result.path, SEPARATOR.join(row.minerals), *extra_values(row, self._extra, self._contract)]
        )
        self._file.write(encode(leading + self._numbers % tuple(row.values)))


class ExcelCsv:
    """Writes the rows of predictions.excel.csv, with decimal commas, as Excel in most of Europe reads numbers."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._contract = contract
        self._extra = extra
        file.write(codecs.BOM_UTF8)
        self._line(["path", "minerals", *extra, *contract.labels])

    def write(self, row: TableRow | Failure) -> None:
        """Append a row for a prediction."""
        if not isinstance(row, Failure):
            values = extra_values(row, self._extra, self._contract)
            extra = (decimal_comma(str(value)) if isinstance(value, float) else value for value in values)
            numbers = (decimal_comma(format_number(value)) for value in row.values)
            self._line([row.result.path, SEPARATOR.join(row.minerals), *extra, *numbers])

    def _line(self, cells: Sequence[object]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, delimiter=";", lineterminator="\r\n").writerow(cells)
        self._file.write(encode(line.getvalue()))


class FailuresCsv:
    """Writes the rows of failures.csv."""

    def __init__(self, file: BinaryIO) -> None:
        self._table = CsvWriter(file, FAILURE_COLUMNS)

    def write(self, row: TableRow | Failure) -> None:
        """Append a row for a failure."""
        if isinstance(row, Failure):
            self._table.write([row.path, row.stage, formula_safe_text(row.reason)])


class JsonLines:
    """Writes the lines of predictions.jsonl."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._contract = contract
        self._extra = extra

    def write(self, row: TableRow | Failure) -> None:
        """Append one object."""
        record = self._failure(row) if isinstance(row, Failure) else self._prediction(row)
        self._file.write(json.dumps(record).encode("ascii") + b"\n")

    def _failure(self, failure: Failure) -> dict[str, object]:
        return {"path": failure.path, "failure": {"stage": failure.stage, "reason": failure.reason}}

    def _prediction(self, row: TableRow) -> dict[str, object]:
        numbers = (float(format_number(value)) for value in row.values)
        return {
            "path": row.result.path,
            "minerals": row.minerals,
            **dict(zip(self._extra, extra_values(row, self._extra, self._contract), strict=True)),
            "probabilities": dict(zip(self._contract.labels, numbers, strict=True)),
        }


def write_tables(
    folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY
) -> TableCounts:
    """Write the tables of a complete run into `folder`; each gets its name when all results are in.

    Args:
        folder: exists.
        results: in the order of the rows.
        contract: labels and thresholds.
        tables: what to write besides predictions.csv and failures.csv.

    Raises:
        DataError: if the disk is full or gone, or Parquet cannot be written here; earlier tables are untouched.
    """
    counts = TableCounts()
    with write_errors(folder, fix=_FIX):
        sweep(folder)
        (folder / RUN_MANIFEST).unlink(missing_ok=True)  # from here on it would describe other tables
        with ExitStack() as stack:
            sinks = _open(stack, folder, contract, tables)
            for row in table_rows(results, contract, tables.levels(contract.labels)):
                counts.add(row)
                for sink in sinks:
                    sink.write(row)
            for sink in sinks:
                if isinstance(sink, SpecimensCsv):
                    sink.finish()
                    counts.specimens, counts.unnamed = sink.specimens, sink.unnamed
                    counts.unnamed_example = sink.unnamed_example
        (folder / PARTIAL).unlink(missing_ok=True)
        if not counts.failed:
            (folder / FAILURES).unlink()
        if tables.specimen is None:  # it would describe other rows
            (folder / SPECIMENS).unlink(missing_ok=True)
    return counts


def write_partial(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY) -> None:
    """Write predictions.partial.csv: what an interrupted run has so far.

    Raises:
        DataError: if the disk is full or gone.
    """
    with write_errors(folder / PARTIAL, fix=_FIX), atomic_file(folder / PARTIAL) as file:
        sink = PredictionsCsv(file, contract, tables.extra)
        for row in table_rows(results, contract, tables.levels(contract.labels)):
            sink.write(row)


def _open(stack: ExitStack, folder: Path, contract: ModelContract, tables: Tables) -> list[Sink]:
    """All sinks; the stack gives the files their names."""

    def file(name: str) -> BinaryIO:
        return stack.enter_context(atomic_file(folder / name))

    sinks: list[Sink] = [PredictionsCsv(file(PREDICTIONS), contract, tables.extra), FailuresCsv(file(FAILURES))]
    if JSON_LINES in tables.files:
        sinks.append(JsonLines(file(JSON_LINES), contract, tables.extra))
    if CSV_EXCEL in tables.files:
        sinks.append(ExcelCsv(file(CSV_EXCEL), contract, tables.extra))
    if PARQUET in tables.files:
        parquet = Parquet(file(PARQUET), contract, tables.extra)
        stack.callback(parquet.close)  # before its file gets its name
        sinks.append(parquet)
    if tables.specimen is not None:
        levels = tables.levels(contract.labels)
        specimens = SpecimensCsv(
            file(SPECIMENS), contract, tables.specimen, decimals=tables.decimals, extra=tables.extra, levels=levels
        )
        stack.callback(specimens.close)
        sinks.append(specimens)
    if tables.per_image:
        sinks.append(PerImageCsv(stack.enter_context(atomic_folder(folder / PER_IMAGE)), contract, tables.extra))
    return sinks


def sweep(folder: Path) -> None:
    """Remove what a run that was killed while it wrote the tables left half written.

    Raises:
        OSError: if the folder cannot be written.
    """
    for name in (*FORMATS.values(), FAILURES, PARTIAL, RUN_MANIFEST, PER_IMAGE, SPECIMENS, RECORD):
        remove_leftovers(folder / name)
