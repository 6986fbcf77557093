r"""The tables that a run leaves, schema version 1. Each appears whole or not at all.

| file | content |
|---|---|
| predictions.csv | a row per predicted picture: `path`, `minerals`, the columns asked for, then one column per label |
| failures.csv | a row per picture without a prediction: `path`, `stage`, `reason`; there only if there is one |
| predictions.jsonl | an object per picture, failures among them, in the order of the files |
| predictions.parquet | as predictions.csv, `minerals` being a list |
| per-image/ | a CSV per predicted picture in a copy of the tree: `mineral`, `probability`, `present` (0 or 1) |
| predictions.partial.csv | of a run that was stopped: what there is so far, as predictions.csv |
| run.json | the certificate of a complete run (`mineral_batch.results.run`); written last |

| column | meaning |
|---|---|
| path | the file as `mineral_batch.images.discover` names it, or `ARCHIVE/MEMBER`; unique within a table |
| minerals | the labels at or above their thresholds, most probable first, joined with `;` |
| width, height | `size`: pixels of the upright photograph |
| captured | `captured`: ISO 8601, empty where the EXIF does not say |
| latitude, longitude | `gps`: decimal degrees, north and east positive, empty where the EXIF does not say |
| one per label | its probability, 0..1; seven significant digits as text, float32 in Parquet |
| stage | `read` (the file), `decode` (its content) or `infer` (the model's answer) |
| reason | one line |

Text is UTF-8. A file name that is not keeps its bytes in the CSVs, is escaped (`\udcXX`) in the JSON and shown as
`\xXX` in Parquet. A relative name that a spreadsheet would run as a formula begins with `./`. A table that an earlier
run left in the folder is brought up to date, asked for or not, so that all that lie there agree.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from mineral_batch.errors import DataError
from mineral_batch.files import whole_file
from mineral_batch.types import ExifInfo, Failure

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Prediction, Result

SCHEMA_VERSION = 1

PREDICTIONS = "predictions.csv"
FAILURES = "failures.csv"
PARTIAL = "predictions.partial.csv"
JSON_LINES = "predictions.jsonl"
PARQUET = "predictions.parquet"
PER_IMAGE = "per-image"
CERTIFICATE = "run.json"

#: What `Tables.formats` may hold, and the file of each.
FORMATS = {"csv": PREDICTIONS, "jsonl": JSON_LINES, "parquet": PARQUET}
#: What `Tables.columns` may hold, and the columns of each.
COLUMNS = {"size": ("width", "height"), "captured": ("captured",), "gps": ("latitude", "longitude")}
#: The columns in front of the labels, with those on request.
LEADING = ("path", "minerals", *(name for names in COLUMNS.values() for name in names))

_ROWS_PER_GROUP = 4096
_LONGEST_NAME = 255  # bytes, on every common file system


@dataclass(frozen=True)
class Tables:
    """What is written.

    Attributes:
        formats: of `FORMATS`; csv is always written.
        per_image: a CSV per picture, too.
        columns: of `COLUMNS`.
    """

    formats: tuple[str, ...] = ("csv",)
    per_image: bool = False
    columns: tuple[str, ...] = ()

    @property
    def needs_exif(self) -> bool:
        """Whether when and where pictures were taken is among the columns."""
        return "captured" in self.columns or "gps" in self.columns

    @property
    def extra(self) -> tuple[str, ...]:
        """The columns between `minerals` and the labels, in a fixed order."""
        return tuple(name for group, names in COLUMNS.items() if group in self.columns for name in names)

    @property
    def files(self) -> tuple[str, ...]:
        """What a run leaves, failures.csv apart."""
        named = tuple(file for name, file in FORMATS.items() if name in self.formats or name == "csv")
        return named + (PER_IMAGE,) * self.per_image

    def and_those_in(self, folder: Path) -> Tables:
        """These, and those that an earlier run left."""
        formats = tuple(name for name, file in FORMATS.items() if name in self.formats or (folder / file).exists())
        return Tables(formats, self.per_image or (folder / PER_IMAGE).exists(), self.columns)


#: predictions.csv and failures.csv.
CSV_ONLY = Tables()


def require(tables: Tables) -> None:
    """Find out before a long run, not after it, that a table could not be written.

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
    """The rows of predictions.csv."""

    def __init__(self, file: BinaryIO, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._file = file
        self._contract = contract
        self._extra = extra
        self._numbers = ",%.7g" * len(contract.labels) + "\n"  # no number needs quoting, and one format is quickest
        _write_row(file, ["path", "minerals", *extra, *contract.labels])

    def write(self, result: Result) -> None:
        """Append a row for a prediction."""
        if isinstance(result, Failure):
            return
        values = result.probabilities.tolist()
        extra = _extra(result)
        told = ("" if extra[name] is None else str(extra[name]) for name in self._extra)
        named = _line([result.path, ";".join(present(values, self._contract)), *told])
        self._file.write(_encoded(named + self._numbers % tuple(values)))


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
        numbers = (float(_number(value)) for value in values)
        return {
            "path": result.path,
            "minerals": present(values, self._contract),
            **{name: extra[name] for name in self._extra},
            "probabilities": dict(zip(self._contract.labels, numbers, strict=True)),
        }


class Parquet:
    """The rows of predictions.parquet, written in groups, so that memory does not grow with them."""

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
        told = (extra[name] for name in self._extra)
        self._rows.append([path, present(values, self._contract), *told, *values])
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
        """Write the last rows and the footer, without which there is no Parquet file."""
        self._flush()
        self._writer.close()


def _pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError('Parquet needs pyarrow: pip install "mineral-batch[parquet]"') from None
    return pyarrow, pyarrow.parquet


class PerImage:
    """One CSV per predicted picture, at its own place below `per-image`, which appears as a whole."""

    def __init__(self, folder: Path, contract: ModelContract) -> None:
        self._folder = folder
        self._new = folder / f".{PER_IMAGE}.part"
        self._contract = contract
        self._new.mkdir()

    def write(self, result: Result) -> None:
        """Write one picture's file."""
        if isinstance(result, Failure):
            return
        values = zip(self._contract.labels, result.probabilities.tolist(), self._contract.thresholds, strict=True)
        with self._create(result.path) as file:
            _write_row(file, ["mineral", "probability", "present"])
            for label, value, threshold in values:
                _write_row(file, [label, _number(value), str(int(value >= threshold))])

    def _create(self, name: str) -> BinaryIO:
        """A new file at the picture's own place, or, where another picture's file or folder is, beside the tree."""
        for place in (mirrored(name), PurePath("%", _digest(name) + ".csv")):
            path = self._new / place
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return path.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                taken = error
        raise taken

    def finish(self) -> None:
        """Take the place of what an earlier run left."""
        target, old = self._folder / PER_IMAGE, self._folder / f".{PER_IMAGE}.old"
        if target.exists():
            target.rename(old)
        self._new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def write_tables(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY) -> None:
    """Write the tables of a complete run into `folder`; each gets its name when all results are in.

    Args:
        folder: exists.
        results: in the order of the rows.
        contract: labels and thresholds.
        tables: what to write beside predictions.csv and failures.csv.

    Raises:
        DataError: if the disk is full or gone, or Parquet cannot be written here; earlier tables are as they were.
    """
    try:
        sweep(folder)
        (folder / CERTIFICATE).unlink(missing_ok=True)  # from here on it would vouch for other tables
        has_failures = _write_all(folder, results, contract, tables)
        (folder / PARTIAL).unlink(missing_ok=True)
        if not has_failures:
            (folder / FAILURES).unlink()
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_partial(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables = CSV_ONLY) -> None:
    """Write predictions.partial.csv: what a run that was stopped has so far.

    Raises:
        DataError: if the disk is full or gone.
    """
    try:
        with whole_file(folder / PARTIAL) as file:
            sink = PredictionsCsv(file, contract, tables.extra)
            for result in results:
                sink.write(result)
    except OSError as error:
        raise _unwritable(folder, error) from None


def _write_all(folder: Path, results: Iterable[Result], contract: ModelContract, tables: Tables) -> bool:
    """Gives whether there was a failure."""
    failed = False
    with ExitStack() as stack:
        sinks, per_image = _open(stack, folder, contract, tables)
        for result in results:
            failed = failed or isinstance(result, Failure)
            for sink in sinks:
                sink.write(result)
        if per_image:
            per_image.finish()
    return failed


def _open(
    stack: ExitStack, folder: Path, contract: ModelContract, tables: Tables
) -> tuple[list[Sink], PerImage | None]:
    """All sinks, the one for single pictures again by itself; the stack gives the files their names."""

    def file(name: str) -> BinaryIO:
        return stack.enter_context(whole_file(folder / name))

    sinks: list[Sink] = [PredictionsCsv(file(PREDICTIONS), contract, tables.extra), FailuresCsv(file(FAILURES))]
    if JSON_LINES in tables.files:
        sinks.append(JsonLines(file(JSON_LINES), contract, tables.extra))
    if PARQUET in tables.files:
        parquet = Parquet(file(PARQUET), contract, tables.extra)
        stack.callback(parquet.close)  # before its file gets its name
        sinks.append(parquet)
    if not tables.per_image:
        return sinks, None
    per_image = PerImage(folder, contract)
    stack.callback(shutil.rmtree, folder / f".{PER_IMAGE}.part", ignore_errors=True)
    return [*sinks, per_image], per_image


def sweep(folder: Path) -> None:
    """Remove what a run that was killed while it wrote the tables left half written."""
    for name in (*FORMATS.values(), FAILURES, PARTIAL, CERTIFICATE):
        for stale in folder.glob(f".{name}.*.part"):
            stale.unlink(missing_ok=True)
    shutil.rmtree(folder / f".{PER_IMAGE}.part", ignore_errors=True)
    old, current = folder / f".{PER_IMAGE}.old", folder / PER_IMAGE
    if old.exists() and not current.exists():  # killed between the two renames
        old.rename(current)
    shutil.rmtree(old, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot write the tables into {folder}: {error.strerror or error}; what was predicted is safe: "
        f"make room and start the same command again"
    )


def mirrored(name: str) -> PurePath:
    r"""Where a picture's own CSV lies: never outside the folder, on no system.

    The path without its root, `.csv` behind. What could lead elsewhere (`..`, a drive, a backslash) is
    percent-encoded; a part that would be too long for a file system is cut and ends with a digest.

    >>> mirrored("/photos/2024/a.jpg").as_posix()
    'photos/2024/a.jpg.csv'
    >>> mirrored("../a.jpg").as_posix()
    '%2E%2E/a.jpg.csv'
    >>> mirrored(r"C:\a.jpg").as_posix()
    'C%3A%5Ca.jpg.csv'
    """
    if os.name == "nt":
        name = name.replace("\\", "/")
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or ["%"]
    return PurePath(*map(_safe, folders), _safe(last + ".csv"))


def _safe(part: str) -> str:
    """One name that means the same on every system."""
    if part in ("..", "...csv"):
        part = part.replace("..", "%2E%2E", 1)
    for character in "\\:\0":
        part = part.replace(character, f"%{ord(character):02X}")
    content = os.fsencode(part)
    if len(content) <= _LONGEST_NAME:
        return part
    end = f"~{_digest(part)}.csv"
    return content[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]


def present(probabilities: Sequence[float], contract: ModelContract) -> list[str]:
    """The labels at or above their thresholds, the most probable first."""
    found = [
        (value, label)
        for value, label, threshold in zip(probabilities, contract.labels, contract.thresholds, strict=True)
        if value >= threshold
    ]
    return [label for _, label in sorted(found, key=lambda pair: -pair[0])]


def _extra(result: Prediction) -> dict[str, Any]:
    """All columns on request, by name."""
    taken = result.exif or ExifInfo()
    return {
        "width": result.width,
        "height": result.height,
        "captured": taken.time,
        "latitude": taken.latitude,
        "longitude": taken.longitude,
    }


def _number(value: float) -> str:
    return f"{value:.7g}"


def _write_row(file: BinaryIO, row: list[str]) -> None:
    file.write(_encoded(_line(row) + "\n"))


def _line(row: list[str]) -> str:
    """A record of CSV without its end.

    The csv module leaves a carriage return unquoted when it does not end lines, and its own reader then fails.
    """
    has_return = any("\r" in field for field in row)
    line = io.StringIO(newline="")
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(row)
    return line.getvalue()[:-1]


def _encoded(text: str) -> bytes:
    """Names of files that are not UTF-8 keep their bytes."""
    return text.encode("utf-8", "surrogateescape")
