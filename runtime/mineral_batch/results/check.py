"""Whether the tables of a run are what `mineral_batch.results.write` says they are, and agree with each other."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_batch.errors import DataError, one_line
from mineral_batch.results.csv import csv_records
from mineral_batch.results.schema import (
    FAILURE_COLUMNS,
    FAILURES,
    JSON_LINES,
    LEADING,
    PARQUET,
    PER_IMAGE,
    PREDICTIONS,
    RUN_MANIFEST,
    SCHEMA_VERSION,
    STAGES,
)
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

# Seven significant digits are written, so a probability may seem to lie on the other side of its threshold.
_ROUNDING = 1e-6
_LIMITS = {"width": (1, math.inf), "height": (1, math.inf), "latitude": (-90, 90), "longitude": (-180, 180)}


@dataclass
class RunManifest:
    """What run.json says, as far as tables are judged by it."""

    problems: list[str] = field(default_factory=list)
    labels: tuple[str, ...] | None = None
    thresholds: tuple[float, ...] = ()
    predicted: int | None = None
    failed: int | None = None
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Row:
    """One prediction as a table has it; `extra` holds the columns on request."""

    where: str
    path: str
    minerals: Sequence[str]
    extra: dict[str, Any]
    probabilities: Sequence[Any]


def check(path: str | Path) -> Iterator[str]:
    """What is wrong with a table, a run.json, or all that a run left in a folder: one line for each problem.

    Where run.json lies beside a table, the table is held against it.

    Raises:
        DataError: if there is no such file, or no check for it.
    """
    given = Path(path)
    if not given.exists():
        raise DataError(f"no such file or folder: {given}")
    if given.is_dir():
        yield from _check_folder(given)
        return
    beside = given.parent / RUN_MANIFEST
    certificate = _certificate(beside) if beside.is_file() else RunManifest()
    if given.name == RUN_MANIFEST:
        yield from certificate.problems
    else:
        yield from _checker(given)(given, certificate)


def _check_folder(folder: Path) -> Iterator[str]:
    if not (folder / RUN_MANIFEST).is_file():
        yield f"{RUN_MANIFEST}: missing, so no run into this folder is complete: start the same command again"
        return
    certificate = _certificate(folder / RUN_MANIFEST)
    yield from (f"{RUN_MANIFEST}: {problem}" for problem in certificate.problems)
    for name in certificate.tables:
        if not (folder / name).exists():
            yield f"{name}: missing, though {RUN_MANIFEST} names it"
        elif name == PER_IMAGE:
            files = sum(1 for _ in (folder / name).rglob("*.csv"))
            yield from (f"{name}: {problem}" for problem in _count("files", files, certificate.predicted))
        else:
            yield from (f"{name}: {problem}" for problem in _checker(folder / name)(folder / name, certificate))
    if (folder / FAILURES).exists() and FAILURES not in certificate.tables:
        yield f"{FAILURES}: there, though {RUN_MANIFEST} does not name it"


def _checker(path: Path) -> Callable[[Path, RunManifest], Iterator[str]]:
    if path.suffix == ".csv":
        return _check_failures if _header(path)[:3] == [*FAILURE_COLUMNS] else _check_csv
    by_suffix = {Path(JSON_LINES).suffix: _check_json_lines, Path(PARQUET).suffix: _check_parquet}
    if path.suffix not in by_suffix:
        raise DataError(f"no check for {path}: it needs a table ({PREDICTIONS}, ...), {RUN_MANIFEST} or their folder")
    return by_suffix[path.suffix]


def _header(path: Path) -> list[str]:
    return next(_csv_rows(path), ("", []))[1]


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of every record."""
    return ((f"line {line}", cells) for line, cells in csv_records(path))


def _check_csv(path: Path, certificate: RunManifest) -> Iterator[str]:
    """predictions.csv."""
    lines = _csv_rows(path)
    header = next(lines, ("", []))[1]
    yield from _check_header(header, certificate)
    leading = [name for name in header if name in LEADING]
    if header[:2] != ["path", "minerals"]:
        return

    problems: list[str] = []

    def rows() -> Iterator[_Row]:
        for where, row in lines:
            if len(row) != len(header):
                problems.append(f"{where}: {len(row)} fields instead of {len(header)}")
                continue
            extra = {name: value or None for name, value in zip(leading[2:], row[2:], strict=False)}
            yield _Row(where, row[0], row[1].split(";") if row[1] else [], extra, row[len(leading) :])

    yield from _check_rows(rows(), header[len(leading) :], certificate)
    yield from problems


def _check_header(header: Sequence[str], certificate: RunManifest) -> Iterator[str]:
    wanted = [name for name in LEADING if name in header]
    if list(header[: len(wanted)]) != wanted or wanted[:2] != ["path", "minerals"]:
        yield f"the columns must begin with path, minerals and those of {', '.join(LEADING[2:])} that were asked for"
    elif certificate.labels is not None and tuple(header[len(wanted) :]) != certificate.labels:
        yield f"the columns behind {wanted[-1]} are not the labels of {RUN_MANIFEST}"
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        yield f"columns come twice: {', '.join(doubled)}"


def _check_json_lines(path: Path, certificate: RunManifest) -> Iterator[str]:
    """predictions.jsonl."""
    failed = 0
    problems: list[str] = []
    labels: list[str] = list(certificate.labels or ())

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

    yield from _check_rows(rows(), labels, certificate)
    yield from problems
    yield from _count("failures", failed, certificate.failed)


def _check_parquet(path: Path, certificate: RunManifest) -> Iterator[str]:
    """predictions.parquet."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"Parquet needs pyarrow: {pip_install('parquet')}") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        header = list(file.schema_arrow.names)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}") from None
    yield from _check_header(header, certificate)
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

    yield from _check_rows(rows(), header[len(leading) :], certificate)


def _check_failures(path: Path, certificate: RunManifest) -> Iterator[str]:
    """failures.csv."""
    seen: set[str] = set()
    lines = _csv_rows(path)
    if next(lines, ("", []))[1] != [*FAILURE_COLUMNS]:
        yield "the columns must be path, stage, reason"
        return
    for where, row in lines:
        if len(row) != 3:
            yield f"{where}: {len(row)} fields instead of 3"
        else:
            yield from _check_failure(where, *row)
            yield from _check_new(where, row[0], seen)
    yield from _count("rows", len(seen), certificate.failed)


def _check_failure(where: str, path: str, stage: str, reason: str) -> Iterator[str]:
    if not path:
        yield f"{where}: no path"
    if stage not in STAGES:
        yield f"{where}: stage {stage!r} is none of {', '.join(STAGES)}"
    if not reason or len(reason.splitlines()) > 1:
        yield f"{where}: the reason must be one line"


def _check_rows(rows: Iterable[_Row], labels: Sequence[str], certificate: RunManifest) -> Iterator[str]:
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
        yield from _check_minerals(row, probabilities, dict(zip(labels, certificate.thresholds, strict=False)))
    yield from _count("predictions", count, certificate.predicted)


def _check_new(where: str, path: str, seen: set[str]) -> Iterator[str]:
    if not path:
        yield f"{where}: no path"
    elif path in seen:
        yield f"{where}: {path!r} comes twice"
    seen.add(path)


def _check_extra(row: _Row) -> Iterator[str]:
    for name, value in row.extra.items():
        if name == "captured":
            if value is not None and not _is_time(value):
                yield f"{row.where}: captured {value!r} is no time of ISO 8601"
            continue
        low, high = _LIMITS[name]
        number = _number(value)
        if value is None and name in ("latitude", "longitude"):
            continue
        if number is None or not low <= number <= high:
            yield f"{row.where}: {name} {value!r} is out of range"


def _check_minerals(row: _Row, probabilities: dict[str, float], thresholds: dict[str, float]) -> Iterator[str]:
    """They must be labels, the most probable first, and those at or above the thresholds, if these are known."""
    unknown = [name for name in row.minerals if name not in probabilities]
    if unknown or len(set(row.minerals)) != len(row.minerals):
        yield f"{row.where}: minerals {';'.join(row.minerals)!r} are not distinct labels"
        return
    listed = [probabilities[name] for name in row.minerals]
    if any(later > earlier for earlier, later in pairwise(listed)):
        yield f"{row.where}: minerals are not in the order of their probabilities"
    for label, threshold in thresholds.items():
        difference = probabilities[label] - threshold
        if abs(difference) > _ROUNDING * threshold and (difference > 0) != (label in row.minerals):
            is_listed = "listed" if label in row.minerals else "not listed"
            yield f"{row.where}: {label} is {is_listed} at {probabilities[label]:g}, its threshold is {threshold:g}"


def _count(what: str, found: int, told: int | None) -> Iterator[str]:
    if told is not None and found != told:
        yield f"{found} {what}, {RUN_MANIFEST} says {told}"


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    with suppress(TypeError, ValueError):
        number = float(value)
        if math.isfinite(number) and not isinstance(value, bool):
            return number
    return None


def _is_time(value: object) -> bool:
    try:
        datetime.fromisoformat(str(value))
    except ValueError:
        return False
    return True


def _certificate(path: Path) -> RunManifest:
    """Read run.json and note what is wrong with it."""
    try:
        record = json.loads(path.read_bytes())
        found = RunManifest(
            labels=tuple(map(str, record["model"]["labels"])),
            thresholds=tuple(map(float, record["model"]["thresholds"])),
            predicted=int(record["pictures"]["predicted"]),
            failed=int(record["pictures"]["failed"]),
            tables=tuple(map(str, record["tables"])),
        )
        found.problems.extend(_check_certificate(record, found))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return RunManifest(problems=[f"not a certificate of this schema ({one_line(error)})"])
    return found


def _check_certificate(record: dict[str, Any], found: RunManifest) -> Iterator[str]:
    if record.get("schema") != SCHEMA_VERSION:
        yield f"schema {record.get('schema')!r}; this release reads {SCHEMA_VERSION}"
    if found.labels is None or len(found.thresholds) != len(found.labels):
        yield "there must be one threshold per label"
    by_stage = record["pictures"].get("failed_by_stage", {})
    if sum(by_stage.values()) != found.failed or not set(by_stage) <= {*STAGES}:
        yield f"the failures by stage {by_stage} do not add up to {found.failed}"
    started, finished = str(record.get("started")), str(record.get("finished"))
    if not (_is_time(started) and _is_time(finished)) or started > finished:
        yield f"started {started} and finished {finished} are no times in this order"
    if PREDICTIONS not in found.tables:
        yield f"{PREDICTIONS} is not among its tables"
