"""Which reading of varieties labels have: an image of agate alone is a negative for quartz, or it is both."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from mineral_batch.minerals.table import lineage


class Reading(NamedTuple):
    """How a label counts for a broader name that is a label, too.

    Attributes:
        label: the narrower one, agate.
        parent: its species or group, quartz.
        images: with the label.
        both: how many of these have the parent as well; the others are negatives for it.
    """

    label: str
    parent: str
    images: int
    both: int

    def __str__(self) -> str:
        return self.line()

    def line(self, noun: str = "image") -> str:
        """In words; `noun` is what was counted."""
        rest = self.images - self.both
        if not rest:
            return f"Every {noun} labeled {self.label} is labeled {self.parent}, too"
        if rest == 1:
            return f"1 {noun} is labeled {self.label} but not {self.parent}; it counts as not {self.parent}"
        return f"{rest:,} {noun}s are labeled {self.label} but not {self.parent}; they count as not {self.parent}"


def pairs(labels: Sequence[str]) -> list[tuple[str, str]]:
    """Each label with a broader name of it, where both are in the set."""
    return [(label, parent) for label in labels for parent in lineage(label) if parent in labels]


def readings(labels: Sequence[str], rows: Collection[Collection[str]]) -> list[Reading]:
    """Count it for each pair whose narrower label some image has.

    Args:
        labels: the set.
        rows: of each image its labels.
    """
    found = []
    for label, parent in pairs(labels):
        of_label = [row for row in rows if label in row]
        if of_label:
            found.append(Reading(label, parent, len(of_label), sum(parent in row for row in of_label)))
    return found
