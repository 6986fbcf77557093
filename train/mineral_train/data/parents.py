"""Varieties beside their species: agate is quartz. Which reading of the labels a table has, and the other one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mineral_batch.minerals.reading import readings
from mineral_batch.minerals.table import lineage
from mineral_train.data.manifest import Manifest, Row

if TYPE_CHECKING:
    from collections.abc import Sequence


def with_parents(row: Row, labels: Sequence[str]) -> Row:
    """The row with the species and group of its labels too, where they are labels of the set."""
    implied = {parent for label in row.labels for parent in lineage(label)}
    return replace(row, labels=tuple(label for label in labels if label in implied or label in row.labels))


def imply_parents(manifest: Manifest) -> Manifest:
    """The manifest with `with_parents` for every row."""
    return replace(manifest, rows=tuple(with_parents(row, manifest.labels) for row in manifest.rows))


def reading(labels: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """A line for each label whose broader name is a label, too: for how many images it counts as that.

    An empty list where no label is broader than another, or no image has such a label.
    """
    found = readings(labels, [row.labels for row in rows])
    return [
        f"{one} (--imply-parents labels {'it' if one.images - one.both == 1 else 'them'} {one.parent}, too)"
        if one.both < one.images
        else str(one)
        for one in found
    ]
