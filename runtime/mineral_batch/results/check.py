"""Checks that the tables of a run follow the schema (`mineral_batch.results.schema`) and agree with each other."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_batch.errors import DataError, one_line
from mineral_batch.results.check_specimens import check_specimens, wrong_minerals
from mineral_batch.results.csv import csv_records, decimal_point, describe_fields, repeated
from mineral_batch.results.manifest import RunManifest, is_time, parse_manifest
from mineral_batch.results.parquet import import_pyarrow
from mineral_batch.results.schema import (
    ANSWER,
    CSV_EXCEL,
    DAMAGED_COLUMN,
    FAILURE_COLUMNS,
    FAILURES,
    JSON_LINES,
    LEADING,
    PARQUET,
    PER_IMAGE,
    PREDICTIONS,
    RUN_MANIFEST,
    SPECIMEN_COLUMNS,
    STAGES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_LIMITS = {
    "width": (1, math.inf),
    "height": (1, math.inf),
    "latitude": (-90, 90),
    "longitude": (-180, 180),
    "margin": (0, 1),
    "familiarity": (0, 1),
}

# Of a margin of probabilities with seven digits.
_MARGIN = 1e-6


@dataclass
class _Expected:
    """What run.json says about the tables, as far as it is known."""

    labels: tuple[str, ...] | None = None
    thresholds: tuple[float, ...] = ()
    predicted: int | None = None
    failed: int | None = None


@dataclass(frozen=True)
class _Row:
    """One prediction as a table has it; `extra` holds the columns on request."""

    where: str
    path: str
    minerals: Sequence[str]
    extra: dict[str, Any]
    probabilities: Sequence[Any]


def check(path: str | Path) -> Iterator[str]:
    """Yield what is wrong with a table, a run.json, or all that a run left in a folder: one line for each problem.

    A table is compared with the run.json beside it, if there is one.

    Raises:
        DataError: if there is no such file, or no check for it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if path.is_dir():
        yield from _check_folder(path)
        return
    beside = path.parent / RUN_MANIFEST
    manifest, problems = _manifest(beside) if beside.is_file() else (None, [])
    if path.name == RUN_MANIFEST:
        yield from problems
    else:
        yield from _checker(path)(path, _expected(manifest))


def _manifest(path: Path) -> tuple[RunManifest | None, list[str]]:
    """run.json, if it can be read, and what is wrong with it."""
    manifest = parse_manifest(path.read_bytes())
    if isinstance(manifest, str):
        return None, [manifest]
    try:
        return manifest, list(manifest.problems())
    except (TypeError, AttributeError) as error:  # a part of another type than the schema's
        return None, [f"not a run.json of this schema ({one_line(error)})"]


def _expected(manifest: RunManifest | None) -> _Expected:
    if manifest is None:
        return _Expected()
    return _Expected(manifest.labels, manifest.thresholds, manifest.predicted, manifest.failed)


def _check_folder(folder: Path) -> Iterator[str]:
    if not (folder / RUN_MANIFEST).is_file():
        yield f"{RUN_MANIFEST}: missing, so no run into this folder is complete: rerun the same command"
        return
    manifest, problems = _manifest(folder / RUN_MANIFEST)
    yield from (f"{RUN_MANIFEST}: {problem}" for problem in problems)
    expected, tables = _expected(manifest), manifest.tables if manifest else ()
    for name in tables:
        if not (folder / name).exists():
            yield f"{name}: missing, though {RUN_MANIFEST} names it"
        elif name == PER_IMAGE:
            files = sum(1 for _ in (folder / name).rglob("*.csv"))
            yield from (f"{name}: {problem}" for problem in _count("files", files, expected.predicted))
        else:
            yield from (f"{name}: {problem}" for problem in _checker(folder / name)(folder / name, expected))
    if (folder / FAILURES).exists() and FAILURES not in tables:
        yield f"{FAILURES}: exists, though {RUN_MANIFEST} does not name it"


def _checker(path: Path) -> Callable[[Path, _Expected], Iterator[str]]:
    if path.suffix == ".csv":
        by_header: dict[tuple[str, ...], Callable[[Path, _Expected], Iterator[str]]] = {
            FAILURE_COLUMNS: _check_failures,
            SPECIMEN_COLUMNS: _check_specimens,
        }
        return by_header.get(tuple(_header(path)[:3]), _check_csv)
    by_suffix = {Path(JSON_LINES).suffix: _check_json_lines, Path(PARQUET).suffix: _check_parquet}
    if path.suffix not in by_suffix:
        raise DataError(f"cannot check {path}: name a table ({PREDICTIONS}, ...), {RUN_MANIFEST} or their folder")
    return by_suffix[path.suffix]


def _header(path: Path) -> list[str]:
    return next(_csv_rows(path), ("", []))[1]


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of every record."""
    if path.name != CSV_EXCEL:
        return ((f"line {line}", cells) for line, cells in csv_records(path))
    records = csv_records(path, ";")
    return ((f"line {line}", [*cells[:2], *map(decimal_point, cells[2:])]) for line, cells in records)


def _check_csv(path: Path, expected: _Expected) -> Iterator[str]:
    """predictions.csv."""
    lines = _csv_rows(path)
    header = next(lines, ("", []))[1]
    yield from _check_header(header, expected)
    leading = [name for name in header if name in LEADING]
    if header[:2] != ["path", "minerals"]:
        return

    problems: list[str] = []

    def rows() -> Iterator[_Row]:
        for where, row in lines:
            if len(row) != len(header):
                problems.append(f"{where}: {describe_fields(len(row), len(header))}")
                continue
            extra = {name: value or None for name, value in zip(leading[2:], row[2:], strict=False)}
            yield _Row(where, row[0], row[1].split(";") if row[1] else [], extra, row[len(leading) :])

    yield from _check_rows(rows(), header[len(leading) :], expected)
    yield from problems


def _check_header(header: Sequence[str], expected: _Expected) -> Iterator[str]:
    wanted = [name for name in LEADING if name in header]
    if list(header[: len(wanted)]) != wanted or wanted[:2] != ["path", "minerals"]:
        yield f"the columns must begin with path, minerals, then any of {', '.join(LEADING[2:])}"
    elif expected.labels is not None and tuple(header[len(wanted) :]) != expected.labels:
        yield f"the columns after {wanted[-1]} are not the labels of {RUN_MANIFEST}"
    doubled = repeated(header)
    if doubled:
        yield f"duplicate column names: {', '.join(doubled)}"


def _check_json_lines(path: Path, expected: _Expected) -> Iterator[str]:
    """predictions.jsonl."""
    failed = 0
    problems: list[str] = []
    labels: list[str] = list(expected.labels or ())

    def rows() -> Iterator[_Row]:
        nonlocal failed
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                where = f"line {number}"
                try:
                    record = json.loads(line)
                    if "failure" in record:
                        failed += 1
                        problems.extend(_check_failure(where, str(record["path"]), **record["failure"]))
                        continue
                    labels[:] = labels or list(record["probabilities"])
                    extra = {name: record[name] for name in LEADING[2:] if name in record}
                    if list(record["probabilities"]) != labels:
                        problems.append(f"{where}: its labels are not those of {RUN_MANIFEST} or of the first line")
                        continue
                    values = [*record["probabilities"].values()]
                    yield _Row(where, str(record["path"]), list(record["minerals"]), extra, values)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    problems.append(f"{where}: not an object of this schema ({one_line(error)})")

    yield from _check_rows(rows(), labels, expected)
    yield from problems
    yield from _count("failures", failed, expected.failed)


def _check_parquet(path: Path, expected: _Expected) -> Iterator[str]:
    """predictions.parquet."""
    pyarrow, parquet = import_pyarrow()
    try:
        file = parquet.ParquetFile(path)
        header = list(file.schema_arrow.names)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    yield from _check_header(header, expected)
    if header[:2] != ["path", "minerals"]:
        return
    leading = [name for name in header if name in LEADING]

    def rows() -> Iterator[_Row]:
        number = 0
        for batch in file.iter_batches():
            for record in batch.to_pylist():
                number += 1
                values = [*record.values()]
                extra = {name: record[name] for name in leading[2:]}
                yield _Row(f"row {number}", values[0], values[1], extra, values[len(leading) :])

    yield from _check_rows(rows(), header[len(leading) :], expected)


def _check_failures(path: Path, expected: _Expected) -> Iterator[str]:
    """failures.csv."""
    seen: set[str] = set()
    lines = _csv_rows(path)
    if next(lines, ("", []))[1] != [*FAILURE_COLUMNS]:
        yield "the columns must be path, stage, reason"
        return
    for where, row in lines:
        if len(row) != 3:
            yield f"{where}: {describe_fields(len(row), 3)}"
        else:
            yield from _check_failure(where, *row)
            yield from _check_new(where, row[0], seen)
    yield from _count("rows", len(seen), expected.failed)


def _check_specimens(path: Path, expected: _Expected) -> Iterator[str]:
    """specimens.csv."""
    return check_specimens(path, expected.labels, expected.thresholds, expected.predicted)


def _check_failure(where: str, path: str, stage: str, reason: str) -> Iterator[str]:
    if not path:
        yield f"{where}: no path"
    if stage not in STAGES:
        yield f"{where}: stage {stage!r} is not one of {', '.join(STAGES)}"
    if not reason or len(reason.splitlines()) > 1:
        yield f"{where}: the reason must be one line"


def _check_rows(rows: Iterable[_Row], labels: Sequence[str], expected: _Expected) -> Iterator[str]:
    seen: set[str] = set()
    count = 0
    for row in rows:
        count += 1
        yield from _check_new(row.where, row.path, seen)
        yield from _check_extra(row)
        values = [_number(value) for value in row.probabilities]
        wrong = [label for label, value in zip(labels, values, strict=False) if value is None or not 0 <= value <= 1]
        if len(values) != len(labels) or wrong:
            yield f"{row.where}: no probability from 0 to 1 for {', '.join(wrong[:3]) or 'every label'}"
            continue
        probabilities = {label: value for label, value in zip(labels, values, strict=True) if value is not None}
        yield from _check_best(row, probabilities)
        thresholds = dict(zip(labels, expected.thresholds, strict=False))
        yield from (f"{row.where}: {problem}" for problem in wrong_minerals(row.minerals, probabilities, thresholds))
    yield from _count("predictions", count, expected.predicted)


def _check_new(where: str, path: str, seen: set[str]) -> Iterator[str]:
    if not path:
        yield f"{where}: no path"
    elif path in seen:
        yield f"{where}: duplicate path {path!r}"
    seen.add(path)


def _check_extra(row: _Row) -> Iterator[str]:
    for name, value in row.extra.items():
        if name == "captured":
            if value is not None and not is_time(value):
                yield f"{row.where}: captured {value!r} is not an ISO 8601 time"
            continue
        if name in (ANSWER, "best", "second", "calibrated", DAMAGED_COLUMN):
            continue
        low, high = _LIMITS[name]
        number = _number(value)
        if value is None and name in ("latitude", "longitude", "familiarity"):
            continue
        if number is None or not low <= number <= high:
            yield f"{row.where}: {name} {value!r} is out of range"


def _check_best(row: _Row, probabilities: dict[str, float]) -> Iterator[str]:
    """The two most probable labels and their distance, if the table has them."""
    if "best" not in row.extra:
        return
    order = sorted(probabilities, key=lambda label: -probabilities[label])[:2]
    first, second = (probabilities[label] for label in order) if len(order) > 1 else (probabilities[order[0]], 0.0)
    named = [probabilities.get(str(row.extra.get(name))) for name in ("best", "second")[: len(order)]]
    margin = _number(row.extra.get("margin"))
    if named != [first, second][: len(order)] or margin is None or abs(margin - (first - second)) > _MARGIN:
        yield f"{row.where}: best, second and margin are not those of the probabilities"
    if row.extra.get("calibrated") not in ("yes", "no"):
        yield f"{row.where}: calibrated {row.extra.get('calibrated')!r} is neither yes nor no"


def _count(what: str, count: int, expected: int | None) -> Iterator[str]:
    if expected is not None and count != expected:
        yield f"{count} {what}, {RUN_MANIFEST} says {expected}"


def _number(value: Any) -> float | None:
    """None for what is not a finite number."""
    with suppress(TypeError, ValueError):
        number = float(value)
        if math.isfinite(number) and not isinstance(value, bool):
            return number
    return None
