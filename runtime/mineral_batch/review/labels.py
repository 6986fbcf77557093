"""Decisions as a table of labels, in the format of a manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.results.csv import CsvWriter, write_csv
from mineral_batch.results.schema import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from mineral_batch.review.decisions import Decision, Decisions

LABELS = "labels.csv"
#: `path` and `labels` are what training and `evaluate` read; the rest is the evidence.
LabelCells = tuple[str, str, str, str, str]
COLUMNS = ("path", "labels", "machine_labels", "reviewer", "time")


def label_rows(decisions: Collection[Decision] | Decisions, given: Mapping[str, Sequence[str]]) -> Iterator[LabelCells]:
    """Rows of `COLUMNS` for every image whose minerals are known.

    Args:
        decisions: those in force; images that were rejected or unsure are left out.
        given: labels that existed before, path -> names; they stay, without a reviewer, where nobody decided.
    """
    decided = set()
    for decision in decisions:
        decided.add(decision.path)
        if decision.status == "labelled":
            machine = SEPARATOR.join(decision.machine)
            yield decision.path, SEPARATOR.join(decision.minerals), machine, decision.reviewer, decision.time
    for path, names in given.items():
        if path not in decided:
            yield path, SEPARATOR.join(names), "", "", ""


def write_labels(path: Path, rows: Iterable[LabelCells]) -> None:
    """Write a table of labels.

    Raises:
        DataError: if it cannot be written.
    """
    write_csv(path, COLUMNS, rows)


def stream_labels(file: BinaryIO, rows: Iterable[LabelCells]) -> None:
    """The same, to an open file."""
    writer = CsvWriter(file, COLUMNS)
    for row in rows:
        writer.write(row)
