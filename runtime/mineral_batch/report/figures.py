"""The figures of a report as plain arrays, for the page and for the plots of papers alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mineral_batch.evaluation.curves import Accuracy, Curve
    from mineral_batch.results.read import Results


class Matrix(NamedTuple):
    """A table of counts: names of its R rows and C columns, counts (R, C), and 0..1 for how dark each cell is."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: NDArray[np.int64]
    scale: NDArray[np.float64]


class LookAlike(NamedTuple):
    """In `pictures` of `support` pictures with `mineral` it was missed and `instead` called."""

    mineral: str
    instead: str
    pictures: int
    support: int


@dataclass(frozen=True)
class Count:
    """How often a mineral was found: pictures in which it is called present, and the median probability there."""

    mineral: str
    pictures: int
    median: float


def counts(results: Results) -> list[Count]:
    """Per label, the most frequent first."""
    table = results.predictions
    rows = []
    for index, name in enumerate(table.labels):
        values = table.scores[table.called[:, index], index]
        rows.append(Count(name, len(values), float(np.median(values)) if len(values) else float("nan")))
    return sorted(rows, key=lambda row: (-row.pictures, row.mineral))


def co_occurrence(results: Results) -> Matrix:
    """In how many pictures two minerals are called together; minerals that are never called are left out.

    The diagonal is how often each is called; how dark a cell is, is the Jaccard index (both / either).
    """
    called = results.predictions.called
    found = np.flatnonzero(called.any(axis=0))
    # Floats, because only they are multiplied by a fast library; exact up to 2^24 pictures in a cell.
    chosen = called[:, found].astype(np.float32)
    together = np.rint(chosen.T @ chosen).astype(np.int64)
    alone = together.diagonal()
    either = alone[:, None] + alone[None] - together
    names = tuple(results.predictions.labels[index] for index in found)
    scale = together / np.maximum(either, 1)
    np.fill_diagonal(scale, alone / max(1, alone.max(initial=0)))
    return Matrix(names, names, together, scale)


NOTHING = "nothing"


def confusions(accuracy: Accuracy) -> Matrix:
    """The confusion matrix of the minerals that occur or are called instead, as fractions of each row's support."""
    labels, table = accuracy.evaluation.labels, accuracy.confusion
    support = accuracy.truth.sum(axis=0)
    rows = np.flatnonzero(support)
    columns = np.union1d(rows, np.flatnonzero(table[:, :-1].any(axis=0)))
    counts = table[np.ix_(rows, np.append(columns, len(labels)))]
    names = (*(labels[index] for index in columns), NOTHING)
    scale = np.minimum(1.0, counts / np.maximum(support[rows, None], 1))
    return Matrix(tuple(labels[index] for index in rows), names, counts, scale)


def look_alikes(accuracy: Accuracy, limit: int = 15) -> list[LookAlike]:
    """The most frequent confusions, by number of pictures and then by fraction of the mineral's."""
    table = accuracy.confusion[:, :-1].copy()
    np.fill_diagonal(table, 0)
    labels, support = accuracy.evaluation.labels, accuracy.truth.sum(axis=0)
    found = [
        LookAlike(labels[t], labels[j], int(table[t, j]), int(support[t])) for t, j in np.argwhere(table > 0).tolist()
    ]
    return sorted(found, key=lambda pair: (-pair.pictures, pair.support, pair.mineral, pair.instead))[:limit]


def steps(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The corners (x, y) of a precision-recall curve drawn as equation 6 sums it: from R_{n-1} to R_n at P_n."""
    is_new = np.diff(curve.recall, prepend=0.0) > 0
    recall, precision = curve.recall[is_new], curve.precision[is_new]
    return np.repeat(np.append(0.0, recall), 2)[1:-1], np.repeat(precision, 2)


def by_ap(accuracy: Accuracy) -> list[int]:
    """Indices of the labels that have positives, the highest AP first (Wu et al. 2022, figure 5)."""
    figure = accuracy.evaluation.mean_ap
    return sorted(np.flatnonzero(figure.support).tolist(), key=lambda index: -figure.per_label[index])


def pairs(matrix: Matrix, limit: int = 10) -> Sequence[tuple[str, str, int]]:
    """The minerals that are called together most often."""
    found = [
        (matrix.rows[i], matrix.rows[j], int(matrix.counts[i, j]))
        for i, j in np.argwhere(np.triu(matrix.counts, 1)).tolist()
    ]
    return sorted(found, key=lambda pair: (-pair[2], pair[0], pair[1]))[:limit]
