"""A table of predictions against a table of labels: join them, judge them, report.

`predictions.csv` has the columns `path`, `minerals` (what was called present, joined with `;`) and one per label
with its probability. `labels.csv` is a manifest: `path`, `labels` (joined with `;`) and, if there are any, `split`.
"""

from __future__ import annotations

import csv
import difflib
import posixpath
import unicodedata
from array import array
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import (
    DEFINITIONS,
    EQUATION_6,
    Bools,
    Definition,
    MeanAP,
    PrecisionRecallF1,
    bootstrap_interval,
    call,
    mean_average_precision,
    precision_recall_f1,
    tune_thresholds,
)
from mineral_batch.model.contract import MINERALS

if TYPE_CHECKING:
    from _csv import Reader
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SEPARATOR = ";"


@dataclass(frozen=True)
class Predictions:
    """A table of predictions in memory.

    Attributes:
        paths: N, as written in the table.
        labels: L, the columns that are labels.
        scores: (N, L) float64 probabilities.
        called: (N, L) bool, the column `minerals`.
        ignored: columns that are no labels.
    """

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    scores: NDArray[np.float64]
    called: Bools
    ignored: tuple[str, ...] = ()

    @property
    def is_rounded(self) -> bool:
        """Whether no probability has more than three decimals: ties that move AP by tenths of a point."""
        return bool(np.allclose(self.scores, self.scores.round(3), rtol=0.0, atol=1e-12))


class LabelRow(NamedTuple):
    """One row of a table of labels; `line` is its place in the file."""

    path: str
    labels: tuple[str, ...]
    split: str
    line: int


@dataclass(frozen=True)
class Joined:
    """The pictures that have both a prediction and labels, in the order of the labels' table.

    Attributes:
        predictions: of these pictures only.
        truth: (N, L) bool.
        unlabelled: how many predictions have no labels.
        other_splits: how many have labels, but of another split than was asked for.
        missing: paths of the labelled pictures that have no prediction.
    """

    predictions: Predictions
    truth: Bools
    unlabelled: int
    other_splits: int
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """Every figure about one joined table.

    Attributes:
        labels: L.
        ap: per definition, the AP per label and their mean.
        interval: 95 % bootstrap interval of the mAP by equation 6, None when not asked for.
        decisions: precision, recall and F1 of what was called present.
        thresholds: (L,) that made the decisions; None when they are the column `minerals`.
    """

    labels: tuple[str, ...]
    ap: Mapping[Definition, MeanAP]
    interval: tuple[float, float] | None
    decisions: PrecisionRecallF1
    thresholds: tuple[float, ...] | None

    @property
    def mean_ap(self) -> MeanAP:
        """By the paper's equation 6."""
        return self.ap[EQUATION_6]


class Tuning(NamedTuple):
    """New thresholds, and the decisions on the same pictures with the old and with the new ones."""

    thresholds: tuple[float, ...]
    before: PrecisionRecallF1
    after: PrecisionRecallF1


def evaluate(joined: Joined, thresholds: Sequence[float] | None = None, resamples: int = 1000) -> Evaluation:
    """Judge probabilities and decisions.

    Args:
        joined: the pictures.
        thresholds: L, to make the decisions anew; None takes those of the column `minerals`.
        resamples: of the bootstrap; 0 leaves the interval out.
    """
    table, truth = joined.predictions, joined.truth
    called = table.called if thresholds is None else call(table.scores, np.array(thresholds))
    return Evaluation(
        labels=table.labels,
        ap={name: mean_average_precision(table.scores, truth, name) for name in DEFINITIONS},
        interval=bootstrap_interval(table.scores, truth, resamples) if resamples else None,
        decisions=precision_recall_f1(called, truth),
        thresholds=None if thresholds is None else tuple(thresholds),
    )


def tune(joined: Joined, thresholds: Sequence[float]) -> Tuning:
    """Thresholds of the highest F1 per label, against those of `thresholds` (L,); rare labels share one."""
    scores, truth = joined.predictions.scores, joined.truth
    old = np.array(thresholds, np.float64)
    new = tune_thresholds(scores, truth, fallback=old)
    before, after = (precision_recall_f1(call(scores, cut), truth) for cut in (old, new))
    return Tuning(tuple(new.tolist()), before, after)


def join(
    predictions: str | Path, labels: str | Path, split: str | None = None, known: Sequence[str] | None = None
) -> Joined:
    """Read both tables and match their rows by path (`match_paths`).

    Args:
        predictions: CSV file.
        labels: CSV file.
        split: judge only rows of this split; all rows when None.
        known: the labels to judge, in this order, each a column of the predictions. None takes the columns after
            `minerals` that are one of the 36 minerals, occur in the labels or are called present somewhere.

    Raises:
        DataError: when a table is unreadable, a label has no column, a match is ambiguous or nothing matches.
    """
    everything = read_labels(labels)
    named = set(chain.from_iterable(row.labels for row in everything))
    table = read_predictions(predictions, named | {*MINERALS}, exactly=known)
    matches = match_paths(table.paths, [row.path for row in everything])
    rows = _of_split(everything, split, labels)
    _require_columns(rows, table, labels)
    pairs = [(matches[row.path], row) for row in rows if row.path in matches]
    if not pairs:
        raise DataError(_nothing_matches(predictions, labels, table.paths, rows))
    chosen = [index for index, _ in pairs]
    return Joined(
        predictions=_select(table, chosen),
        truth=_indicator([row.labels for _, row in pairs], table.labels),
        unlabelled=len(table.paths) - len(matches),
        other_splits=len(matches) - len(pairs),
        missing=tuple(row.path for row in rows if row.path not in matches),
    )


def read_labels(path: str | Path) -> list[LabelRow]:
    """The rows of a manifest; without a column `split` every split is empty text.

    Raises:
        DataError: when the file is missing, has no column `path` or `labels`, or names a picture twice.
    """
    with _table(path, ("path", "labels")) as (header, records):
        at = header.index("path"), header.index("labels")
        split = header.index("split") if "split" in header else None
        rows = [
            LabelRow(fields[at[0]], _names(fields[at[1]]), fields[split].strip() if split is not None else "", line)
            for line, fields in records
        ]
    _require_distinct(path, [(row.path, row.line) for row in rows])
    return rows


def read_predictions(path: str | Path, known: Collection[str], exactly: Sequence[str] | None = None) -> Predictions:
    """The rows of a table of predictions.

    Args:
        path: CSV file.
        known: names whose columns are labels; what is called present anywhere is a label too.
        exactly: these labels in this order instead.

    Raises:
        DataError: when the file is missing, a column lacks, or a value is not a probability (with its line).
    """
    header, paths, calls = _read_calls(path)
    candidates = header[header.index("minerals") + 1 :]
    named = {*known, *chain.from_iterable(calls)}
    labels = tuple(exactly or (name for name in candidates if name in named))
    absent = [name for name in labels if name not in candidates]
    if absent or not labels:
        raise DataError(f"{path} has no columns {_listed(absent) or 'of minerals'}; it has {_listed(candidates)}")
    # Decisions on labels that the caller leaves out are left out with them.
    called = _indicator([[name for name in names if name in labels] for names in calls], labels)
    ignored = tuple(name for name in candidates if name not in labels)
    return Predictions(tuple(paths), labels, _read_scores(path, labels), called, ignored)


def match_paths(predicted: Sequence[str], labelled: Sequence[str]) -> dict[str, int]:
    r"""Which labelled path is which prediction: {labelled path: index in `predicted`}.

    Two paths match when they are equal after normalising (`\` is `/`, `.` and leading `..` dropped, Unicode NFC),
    or one is the end of the other by whole components: `images/a.jpg` matches `/data/images/a.jpg`. Equal paths
    match first; of several ends the longest counts.

    Raises:
        DataError: when one path matches two, naming both.
    """
    theirs = _by_components(predicted)
    ours = _by_components(labelled)
    matches = {ours[key]: theirs[key] for key in ours.keys() & theirs.keys()}
    left_theirs = {key: path for key, path in theirs.items() if key not in ours}
    left_ours = {key: path for key, path in ours.items() if key not in theirs}
    pairs = {(left_ours[end], path) for key, path in left_theirs.items() if (end := _longest_end(key, left_ours))}
    pairs |= {(path, left_theirs[end]) for key, path in left_ours.items() if (end := _longest_end(key, left_theirs))}
    matches |= _one_to_one(pairs)
    index = {path: i for i, path in enumerate(predicted)}
    return {label: index[prediction] for label, prediction in matches.items()}


Components = tuple[str, ...]


def _components(path: str) -> Components:
    """The parts of a normalised path; an absolute one begins with `/`, so that it is the end of no other."""
    clean = posixpath.normpath(unicodedata.normalize("NFC", path.strip().replace("\\", "/")))
    parts = clean.lstrip("/").split("/")
    while parts and parts[0] == "..":
        parts.pop(0)
    return ("/", *parts) if clean.startswith("/") else tuple(parts)


def _by_components(paths: Iterable[str]) -> dict[Components, str]:
    found: dict[Components, str] = {}
    for path in paths:
        other = found.setdefault(_components(path), path)
        if other != path:
            raise DataError(f"{_shown(other)} and {_shown(path)} in one table are the same path: keep one of them")
    return found


def _longest_end(key: Components, among: Collection[Components]) -> Components | None:
    """The longest proper end of a path that is in `among`."""
    return next((key[start:] for start in range(1, len(key)) if key[start:] in among), None)


def _one_to_one(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a mapping, if no path is in two of them."""
    pairs = sorted(pairs)
    for side, name in ((0, "labelled path"), (1, "prediction")):
        partners = defaultdict(list)
        for pair in pairs:
            partners[pair[side]].append(pair[1 - side])
        for path, both in partners.items():
            if len(both) > 1:
                raise DataError(
                    f"the {name} {_shown(path)} matches both {_shown(both[0])} and {_shown(both[1])}: "
                    f"write more of the path into the table of labels"
                )
    return dict(pairs)


@contextmanager
def _table(path: str | Path, needed: Sequence[str]) -> Iterator[tuple[list[str], Iterator[tuple[int, list[str]]]]]:
    """The header of a CSV file and its records with their line numbers; what is wrong becomes one line."""
    try:
        # File names that are not UTF-8 keep their bytes, as `predict` writes them; a spreadsheet adds a mark (BOM).
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, needed)
            yield header, _records(path, reader, len(header))
    except FileNotFoundError:
        raise DataError(f"there is no file {path}") from None
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def _check_header(path: str | Path, header: list[str], needed: Sequence[str]) -> None:
    absent = [name for name in needed if name not in header]
    if absent:
        raise DataError(f"{path} has no column {_listed(absent)}; its first line has {_listed(header) or 'nothing'}")
    doubled = sorted({name for name in header if header.count(name) > 1})
    if doubled:
        raise DataError(f"{path} has two columns of one name: {_listed(doubled)}")


def _records(path: str | Path, reader: Reader, width: int) -> Iterator[tuple[int, list[str]]]:
    for fields in reader:
        if fields and len(fields) != width:
            raise DataError(f"{path} line {reader.line_num}: {len(fields)} fields where the first line has {width}")
        if fields:
            yield reader.line_num, fields


def _read_calls(path: str | Path) -> tuple[list[str], list[str], list[tuple[str, ...]]]:
    """The header, the paths and what is called present in each, checked to be columns."""
    with _table(path, ("path", "minerals")) as (header, records):
        at, minerals = header.index("path"), header.index("minerals")
        columns = set(header[minerals + 1 :])
        paths, calls, lines = [], [], []
        for line, fields in records:
            names = _names(fields[minerals])
            if not columns.issuperset(names):
                unknown = [name for name in names if name not in columns]
                raise DataError(f"{path} line {line}: minerals names {_listed(unknown)}, which is no column")
            paths.append(fields[at])
            calls.append(names)
            lines.append(line)
    _require_distinct(path, list(zip(paths, lines, strict=True)))
    return header, paths, calls


def _read_scores(path: str | Path, labels: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities (N, L), by a second pass: the first one says which columns they are."""
    values = array("d")
    with _table(path, labels) as (header, records):
        columns = [header.index(name) for name in labels]
        for line, fields in records:
            try:
                row = [float(fields[column]) for column in columns]
            except ValueError:
                row = [np.nan]
            if not all(0.0 <= value <= 1.0 for value in row):
                raise DataError(_bad_probability(path, line, labels, [fields[column] for column in columns]))
            values.extend(row)
    return np.frombuffer(values, np.float64).reshape(-1, len(labels))


def _bad_probability(path: str | Path, line: int, labels: Sequence[str], cells: Sequence[str]) -> str:
    name, cell = next((name, cell) for name, cell in zip(labels, cells, strict=True) if not _is_probability(cell))
    return f"{path} line {line}, column {name}: {cell!r} is not a probability, a number from 0 to 1"


def _is_probability(cell: str) -> bool:
    try:
        return 0.0 <= float(cell) <= 1.0
    except ValueError:
        return False


def _names(cell: str) -> tuple[str, ...]:
    """`"quartz; gold"` -> `("quartz", "gold")`."""
    return tuple(name for part in cell.split(SEPARATOR) if (name := part.strip()))


def _indicator(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> Bools:
    """(N, L) bool: which label is in which row."""
    column = {name: index for index, name in enumerate(labels)}
    table = np.zeros((len(rows), len(labels)), np.bool_)
    for row, names in zip(table, rows, strict=True):
        row[[column[name] for name in names]] = True
    return table


def _select(table: Predictions, chosen: Sequence[int]) -> Predictions:
    return Predictions(
        tuple(table.paths[index] for index in chosen),
        table.labels,
        table.scores[chosen],
        table.called[chosen],
        table.ignored,
    )


def _of_split(rows: list[LabelRow], split: str | None, path: str | Path) -> list[LabelRow]:
    chosen = rows if split is None else [row for row in rows if row.split == split]
    if not chosen:
        splits = sorted({row.split for row in rows} - {""})
        raise DataError(
            f"{path} has no rows" + (f" of split {split!r}; it has {_listed(splits) or 'none'}" if split else "")
        )
    return chosen


def _require_columns(rows: Sequence[LabelRow], table: Predictions, path: str | Path) -> None:
    """Every label in use is one that was predicted, else a spelling mistake would count as an absent mineral."""
    unknown = {name: row.line for row in reversed(rows) for name in row.labels if name not in table.labels}
    if not unknown:
        return
    named = []
    for name, line in sorted(unknown.items(), key=lambda item: item[1])[:5]:
        near = difflib.get_close_matches(name, table.labels, n=1)
        named.append(f"{name!r} (line {line}" + (f", did you mean {near[0]!r}?)" if near else ")"))
    more = f" and {len(unknown) - len(named)} more" if len(unknown) > len(named) else ""
    raise DataError(
        f"{path} has labels that were not predicted: {', '.join(named)}{more}; predicted were {_listed(table.labels)}"
    )


def _require_distinct(path: str | Path, places: Sequence[tuple[str, int]]) -> None:
    seen: dict[str, int] = {}
    for name, line in places:
        first = seen.setdefault(name, line)
        if first != line:
            raise DataError(f"{path} names {_shown(name)} twice, in lines {first} and {line}: keep one of them")


def _nothing_matches(
    predictions: str | Path, labels: str | Path, paths: Sequence[str], rows: Sequence[LabelRow]
) -> str:
    example = f"for example {_shown(paths[0])}" if paths else "empty"
    return (
        f"no picture is in both tables: {predictions} has {len(paths)} rows ({example}), "
        f"{labels} has {len(rows)} (for example {_shown(rows[0].path)}); paths match when one is the end of the other"
    )


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(_shown(name) for name in names[:limit]) + more


def _shown(text: str) -> str:
    """The text with bytes that are not UTF-8 replaced, so that it can be printed."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
