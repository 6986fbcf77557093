"""Judging predictions at the level of species, groups or classes, and which reading of the labels that is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.evaluate import Joined
from mineral_batch.minerals.levels import SURE, rolled_up
from mineral_batch.minerals.reading import Reading, pairs, readings
from mineral_batch.minerals.table import Level, Table, names_at


def at_level(joined: Joined, level: Level, minerals: Table | None = None) -> Joined:
    """Return the same images with every label read as its name at a level.

    A name is true where one of its labels is. Its probability is that of any of them (see `minerals.levels`), and it is
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


def readings_of(joined: Joined) -> list[Reading]:
    """How many images of a variety count as negatives for its species, by the labels as they are written."""
    labels = joined.predictions.labels
    narrower = [labels.index(label) for label, _ in pairs(labels)]
    of_varieties = joined.truth[joined.truth[:, narrower].any(axis=1)]
    return readings(labels, [{labels[index] for index in np.flatnonzero(row)} for row in of_varieties])
