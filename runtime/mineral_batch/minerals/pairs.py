"""Species that hardly occur together: a reason to look again at an answer that names both, never a correction.

The table (implausible.csv beside this file) has only pairs for which a source can be named.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from mineral_batch.minerals.table import Table, name_at


class Pair(NamedTuple):
    """Two species that hardly occur together, why, and who says so."""

    one: str
    other: str
    reason: str
    source: str


@cache
def implausible_pairs() -> tuple[Pair, ...]:
    """Every pair of the table."""
    text = (files(__package__) / "implausible.csv").read_text(encoding="utf-8")
    return tuple(Pair(**row) for row in csv.DictReader(text.splitlines()))


def columns_of(pair: Pair, labels: Sequence[str], table: Table | None = None) -> tuple[list[int], list[int]]:
    """The labels that are the one species or varieties of it, and those of the other."""
    species = [name_at(label, "species", table) for label in labels]
    one, other = ([index for index, name in enumerate(species) if name == wanted] for wanted in pair[:2])
    return one, other
