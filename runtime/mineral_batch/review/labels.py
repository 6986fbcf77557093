"""Decisions as a table of labels, in the format of a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.results.csv import CsvWriter, write_csv
from mineral_batch.results.schema import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    from mineral_batch.review.decisions import Decision

LABELS = "labels.csv"
#: `path` and `labels` are what training and `evaluate` read; the rest is the evidence.
COLUMNS = ("path", "labels", "machine_labels", "reviewer", "time")


def label_rows(decisions: Iterable[Decision]) -> Iterator[tuple[str, ...]]:
    """Rows of `COLUMNS` for every image whose minerals are known; images that were rejected or unsure are left out."""
    for decision in decisions:
        if decision.status == "labelled":
            yield (
                decision.path,
                SEPARATOR.join(decision.minerals),
                SEPARATOR.join(decision.machine),
                decision.reviewer,
                decision.time,
            )


def write_labels(path: Path, decisions: Iterable[Decision]) -> None:
    """Write a table of labels.

    Raises:
        DataError: if it cannot be written.
    """
    write_csv(path, COLUMNS, label_rows(decisions))


def stream_labels(file: BinaryIO, decisions: Iterable[Decision]) -> None:
    """The same, to an open file."""
    writer = CsvWriter(file, COLUMNS)
    for row in label_rows(decisions):
        writer.write(row)
