"""Judging predictions at the level of species, groups or classes, and which reading of the labels that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.evaluate import Joined
from mineral_batch.minerals.table import Level, Table, load_table, names_at
from mineral_batch.results.levels import SURE, rolled_up


def at_level(joined: Joined, level: Level, minerals: Table | None = None) -> Joined:
    """Return the same images with every label read as its name at a level.

    A name is true where one of its labels is. Its probability is that of any of them (see `results.levels`), and it is
    called present where one of them is or where the union is sure.

    Raises:
        DataError: if all labels have the same name at that level.
    """
    table = joined.predictions
    names, scores = rolled_up(table.scores, table.labels, level, minerals)
    if len(names) < 2:
        raise DataError(f"all labels are {names[0]} at the level of {level}: nothing is left to tell apart")
    columns = [
        [table.labels.index(label) for label in covered] for covered in names_at(table.labels, level, minerals).values()
    ]
    truth = np.stack([joined.truth[:, one].any(axis=1) for one in columns], axis=1)
    called = np.stack([table.called[:, one].any(axis=1) for one in columns], axis=1)
    is_union = np.array([len(one) > 1 for one in columns])
    called |= (scores >= SURE) & is_union
    return replace(joined, predictions=replace(table, labels=names, scores=scores, called=called), truth=truth)


def varieties_beside_their_species(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a variety and its species that are labels side by side: an image of one is a negative for the other."""
    table = load_table()
    known = [table[label] for label in labels if label in table]
    return [(one.name, one.species) for one in known if one.is_variety and one.species in labels]
