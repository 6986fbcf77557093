"""A table of predictions, read back into arrays.

`predictions.csv` has the columns `path`, `minerals` (what was called present, joined with `;`) and, behind them, one
per label with its probability.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import DataError
from mineral_batch.results.csv import decimal_point, listed, open_csv, require_distinct, shown
from mineral_batch.results.schema import LEADING, SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path


Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Predictions:
    """A table of predictions in memory.

    Attributes:
        paths: N, as written in the table.
        labels: L, the columns that are labels.
        scores: (N, L) float64 probabilities.
        called: (N, L) bool, the column `minerals`.
        ignored: columns that are not labels.
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

    def select(self, rows: Sequence[int]) -> Predictions:
        """The same table with these rows only, in this order."""
        paths = tuple(self.paths[row] for row in rows)
        return Predictions(paths, self.labels, self.scores[rows], self.called[rows], self.ignored)

    def extended(self, more: Predictions) -> Predictions:
        """The same table with the rows of another one, of the same labels, after its own."""
        scores, called = np.concatenate([self.scores, more.scores]), np.concatenate([self.called, more.called])
        return Predictions(self.paths + more.paths, self.labels, scores, called, self.ignored)


def read_predictions(path: str | Path, known: Collection[str], exactly: Sequence[str] | None = None) -> Predictions:
    """Read a table of predictions.

    Args:
        path: CSV file.
        known: names whose columns are labels; a name in the column `minerals` is a label too, and so is every other
            column of nothing but probabilities, except the extra ones that `predict` writes (`LEADING`).
        exactly: these labels in this order instead.

    Raises:
        DataError: if the file is missing, lacks a column, or has a value that is not a probability (with its line).
    """
    header, paths, calls = _read_calls(path)
    candidates = header[header.index("minerals") + 1 :]
    labels = tuple(exactly or _label_columns(path, candidates, {*known, *chain.from_iterable(calls)}))
    present, wanted = set(candidates), set(labels)
    absent = [name for name in labels if name not in present]
    if absent or not labels:
        raise DataError(f"{path} has no columns {listed(absent) or 'of minerals'}; it has {listed(candidates)}")
    # Decisions on labels that the caller leaves out are left out with them.
    called = indicator([[name for name in names if name in wanted] for names in calls], labels)
    ignored = tuple(name for name in candidates if name not in wanted)
    return Predictions(tuple(paths), labels, _read_scores(path, labels), called, ignored)


def split_labels(cell: str) -> tuple[str, ...]:
    """`"quartz; gold"` -> `("quartz", "gold")`."""
    return tuple(name for part in cell.split(SEPARATOR) if (name := part.strip()))


def indicator(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> Bools:
    """(N, L) bool: which label is in which row; every name is one of `labels`."""
    column = {name: index for index, name in enumerate(labels)}
    table = np.zeros((len(rows), len(labels)), np.bool_)
    for row, names in zip(table, rows, strict=True):
        row[[column[name] for name in names]] = True
    return table


def _read_calls(path: str | Path) -> tuple[tuple[str, ...], list[str], list[tuple[str, ...]]]:
    """The header, the paths and what is called present in each, checked to be columns."""
    with open_csv(path, ("path", "minerals"), sniff=("path", "minerals")) as table:
        at, minerals = table.index("path"), table.index("minerals")
        columns = set(table.header[minerals + 1 :])
        paths, calls, lines = [], [], []
        for line, fields in table:
            names = split_labels(fields[minerals])
            if not columns.issuperset(names):
                unknown = [name for name in names if name not in columns]
                raise DataError(f"{path} line {line}: minerals names {listed(unknown)}, which is not a column")
            if "\0" in fields[at]:
                raise DataError(f"{path} line {line}: a NUL character in the path, which no file can have")
            paths.append(fields[at])
            calls.append(names)
            lines.append(line)
    require_distinct(path, list(zip(paths, lines, strict=True)))
    return table.header, paths, calls


def _label_columns(path: str | Path, candidates: Sequence[str], named: Collection[str]) -> list[str]:
    """The columns that are labels by name or by their values: a model's own label may be in no image."""
    others = [name for name in candidates if name not in named and name not in LEADING]
    if others:
        with open_csv(path, others, sniff=others) as table:
            places = {name: table.index(name) for name in others}
            for _, fields in table:
                places = {name: place for name, place in places.items() if _is_probability(fields[place])}
        named = {*named, *places}
    return [name for name in candidates if name in named]


def _read_scores(path: str | Path, labels: Sequence[str]) -> NDArray[np.float64]:
    """The probabilities (N, L), by a second pass: the first one says which columns they are."""
    values = array("d")
    with open_csv(path, labels, sniff=labels) as table:
        places = {name: place for place, name in enumerate(table.header)}
        columns = [places[name] for name in labels]
        for line, fields in table:
            try:
                row = [float(decimal_point(fields[column])) for column in columns]
            except ValueError:
                row = [np.nan]
            if not all(0.0 <= value <= 1.0 for value in row):
                raise DataError(_bad_probability(path, line, labels, [fields[column] for column in columns]))
            values.extend(row)
    return np.frombuffer(values, np.float64).reshape(-1, len(labels))


def _bad_probability(path: str | Path, line: int, labels: Sequence[str], cells: Sequence[str]) -> str:
    name, cell = next((name, cell) for name, cell in zip(labels, cells, strict=True) if not _is_probability(cell))
    return f"{path} line {line}, column {name}: {shown(cell)!r} is not a probability, a number from 0 to 1"


def _is_probability(cell: str) -> bool:
    try:
        return 0.0 <= float(decimal_point(cell)) <= 1.0
    except ValueError:
        return False
