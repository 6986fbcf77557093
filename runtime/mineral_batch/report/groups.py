"""What the gallery groups and finds photographs by, besides the minerals: broader names, other names, specimens."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mineral_batch.minerals.levels import Levels
from mineral_batch.minerals.pairs import Pair, columns_of, implausible_pairs
from mineral_batch.minerals.table import LEVELS, Level, Table, load_table, names_at
from mineral_batch.results.read import Results
from mineral_batch.results.specimens import combined, specimen_rule

_SHOWN = 4  # minerals of a specimen


@dataclass(frozen=True)
class Broader:
    """A species, group or class, and the labels that it covers."""

    name: str
    level: Level
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Groups:
    """What is known about the labels and the images of a run.

    Attributes:
        broader: the species, groups and classes of the labels, from narrow to broad.
        other_names: of each label, folded: what it is called in other languages, and what is broader.
        answers: row of an image -> the broader names (indices) that are its answer where no mineral is sure.
        implausible: row of an image -> the pair of species in it that hardly occur together (`minerals.pairs`).
        specimens: name and answer of each that the rule names.
        specimen_of: (N,) index of each image's specimen, -1 where the rule names none; empty without a rule.
    """

    broader: tuple[Broader, ...] = ()
    other_names: tuple[tuple[str, ...], ...] = ()
    answers: dict[int, list[int]] = field(default_factory=dict)
    implausible: dict[int, Pair] = field(default_factory=dict)
    specimens: tuple[tuple[str, str], ...] = ()
    specimen_of: Sequence[int] = ()

    def record(self) -> dict[str, Any]:
        """What the page's script needs of it, the images apart."""
        return {
            "broader": [[one.name, one.level, list(one.labels)] for one in self.broader],
            "names": self.other_names,
            "specimens": self.specimens,
        }


def find_groups(
    results: Results, level: Level | None = None, specimen: str | None = None, table: Table | None = None
) -> Groups:
    """Find the groups of a run.

    Args:
        results: of the run.
        level: the broadest at which an answer may be; None for minerals only.
        specimen: rule as `predict --specimen` takes it; None for no specimens.
        table: of minerals; None for the package's.

    Raises:
        DataError: as `results.specimens.specimen_rule` does.
    """
    table = load_table() if table is None else table
    labels = results.predictions.labels
    broader = tuple(_broader(labels, table))
    names = tuple(_other_names(label, table) for label in labels)
    answers = _answers(results, level, table, broader)
    together = _implausible(results, table)
    if specimen is None:
        return Groups(broader, names, answers, together)
    return Groups(broader, names, answers, together, *_specimens(results, specimen))


def _broader(labels: Sequence[str], table: Table) -> list[Broader]:
    """Those that are more than one of the labels under its own name; each set of labels once at a level."""
    known = [label for label in labels if label in table]
    return [
        Broader(name, level, tuple(labels.index(label) for label in covered))
        for level in LEVELS[1:]
        for name, covered in names_at(known, level, table).items()
        if covered != (name,) and (level == "class" or len(covered) > 1)
    ]


def _other_names(label: str, table: Table) -> tuple[str, ...]:
    if label not in table:
        return (folded(label),)
    mineral = table[label]
    names = (label, *(name for several in mineral.synonyms.values() for name in several), *mineral.lineage)
    return tuple(dict.fromkeys(map(folded, names)))


def folded(text: str) -> str:
    """Lower case and without accents, as the page's script folds what is typed."""
    letters = unicodedata.normalize("NFKD", text).lower()
    return "".join(c for c in letters if not unicodedata.category(c).startswith("M"))


def _answers(results: Results, level: Level | None, table: Table, broader: Sequence[Broader]) -> dict[int, list[int]]:
    if level is None:
        return {}
    predictions = results.predictions
    index = {one.labels: number for number, one in reversed(list(enumerate(broader)))}
    levels = Levels(predictions.labels, level, table)
    numbers = {union.name: index[union.columns] for union in levels.unions if union.columns in index}
    found = levels.answers(predictions.scores, predictions.called)
    return {
        row: added
        for row, names in enumerate(found)
        if (added := [numbers[name] for name in names[int(predictions.called[row].sum()) :] if name in numbers])
    }


def _implausible(results: Results, table: Table) -> dict[int, Pair]:
    called = results.predictions.called
    found: dict[int, Pair] = {}
    for pair in implausible_pairs():
        one, other = columns_of(pair, results.predictions.labels, table)
        both = called[:, one].any(axis=1) & called[:, other].any(axis=1)
        found |= dict.fromkeys(np.flatnonzero(both).tolist(), pair)
    return found


def _specimens(results: Results, rule: str) -> tuple[tuple[tuple[str, str], ...], Sequence[int]]:
    name = specimen_rule(rule)
    members: dict[str, list[int]] = {}
    for row, path in enumerate(results.predictions.paths):
        if specimen := name(path):
            members.setdefault(specimen, []).append(row)
    specimen_of: NDArray[np.int64] = np.full(len(results.predictions.paths), -1)
    for number, rows in enumerate(members.values()):
        specimen_of[rows] = number
    return tuple((name, _answer(results, rows)) for name, rows in members.items()), specimen_of.tolist()


def _answer(results: Results, rows: list[int]) -> str:
    """The minerals of a specimen with their probabilities, most probable first."""
    scores = combined(results.predictions.scores[rows])
    found = [index for index in np.argsort(-scores, kind="stable") if scores[index] >= results.thresholds[index]]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    named = (f"{results.predictions.labels[index]} {scores[index]:.0%}" for index in found[:_SHOWN])
    return (", ".join(named) or "no mineral") + more
