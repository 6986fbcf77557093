"""Answers at a broader level: where no label is sure but their union is, the name that covers them is given.

Ruby and sapphire at 40% each are no answer; corundum at 64% nearly is. The probability of a union is taken as that of
independent labels, 1 - prod(1 - p): on 635 validation images it had a lower log loss than the sum capped at 1 at the
level of classes (0.131 against 0.134) and the same below (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mineral_batch.minerals.table import LEVELS, Level, Table, names_at
from mineral_batch.types import Prediction

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: What a union needs to be an answer: the bar in use for "identified to genus" where species are unsure.
SURE = 0.65
_DIGITS = 1e-5  # more than seven digits of dozens of labels can change a union


@dataclass(frozen=True)
class Union:
    """A name that covers several labels.

    Attributes:
        name: of the species, group or class.
        columns: of the labels.
    """

    name: str
    columns: tuple[int, ...]


class Levels:
    """The broader names over a set of labels, narrow ones first.

    Args:
        labels: L, in the order of the probabilities.
        level: the broadest that may be an answer.
        table: of minerals; None for the package's.
    """

    def __init__(self, labels: Sequence[str], level: Level, table: Table | None = None) -> None:
        self.labels = tuple(labels)
        self.unions = tuple(self._find(level, table))

    def _find(self, broadest: Level, table: Table | None) -> Iterator[Union]:
        """Each set of two labels or more once, under its narrowest name."""
        known: set[tuple[str, ...]] = set()
        for level in LEVELS[1 : LEVELS.index(broadest) + 1]:
            for name, covered in names_at(self.labels, level, table).items():
                if len(covered) > 1 and covered not in known:
                    known.add(covered)
                    yield Union(name, tuple(self.labels.index(label) for label in covered))

    def union(self, name: str) -> Union | None:
        """The union of a name; None of a label, or of a name that is none."""
        return next((union for union in self.unions if union.name == name), None)

    def answer(self, prediction: Prediction) -> tuple[str, ...]:
        """The answer for one prediction of a `Predictor` of the same labels; the column `answer` of the tables.

        >>> from mineral_batch import Levels, Predictor
        >>> with Predictor() as predictor:                                # doctest: +SKIP
        ...     levels = Levels(predictor.contract.labels, "group")
        ...     print([levels.answer(one) for one in predictor.predict("photos")])
        """
        values = prediction.probabilities.astype(np.float64)[np.newaxis]
        (found,) = self.answers(values, values >= np.array(prediction.thresholds))
        return found

    def answers(self, probabilities: Floats, present: Bools) -> list[tuple[str, ...]]:
        """The answer for each image: its labels, most probable first, then the unions that are sure without them.

        A union counts only if none of its labels is present and no narrower union of the answer is part of it.

        Args:
            probabilities: (N, L).
            present: (N, L), the labels at or above their thresholds.
        """
        ranked = np.argsort(-probabilities, axis=1, kind="stable")
        found = [
            [self.labels[column] for column in order if row[column]]
            for order, row in zip(ranked.tolist(), present.tolist(), strict=True)
        ]
        covered = present.copy()
        for union in self.unions:
            columns = list(union.columns)
            is_sure = _as_written(probabilities[:, columns]) >= SURE
            for index in np.flatnonzero(is_sure & ~covered[:, columns].any(axis=1)):
                found[index].append(union.name)
                covered[index, columns] = True
        return [tuple(names) for names in found]


def _as_written(probabilities: Floats) -> Floats:
    """The probability of a union; where it is near the bar, from the seven digits that tables have of each label.

    So that a table's answers are those that a reader of the table finds.
    """
    unions = union_probability(probabilities)
    for row in np.flatnonzero(np.abs(unions - SURE) < _DIGITS):
        written = np.array([float(f"{value:.7g}") for value in probabilities[row].tolist()])
        unions[row] = union_probability(written[np.newaxis])[0]
    return unions


def union_probability(probabilities: Floats) -> Floats:
    """The probability of any of the labels, were they independent: (N, K) to (N,)."""
    result: Floats = 1.0 - np.prod(1.0 - probabilities, axis=1)
    return result


def rolled_up(
    values: Floats, labels: Sequence[str], level: Level, table: Table | None = None
) -> tuple[tuple[str, ...], Floats]:
    """Probabilities of the names at a level, every label counted under its own: (N, L) to names (K,) and (N, K)."""
    covered = names_at(labels, level, table)
    columns = {name: [labels.index(label) for label in several] for name, several in covered.items()}
    parts = [union_probability(values[:, one]) for one in columns.values()]
    return tuple(columns), np.stack(parts, axis=1) if len(values) else np.zeros((0, len(columns)))
