"""Decisions as a table of labels, in the format of a manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths, name_labels, read_labels, read_other_columns
from mineral_batch.results.csv import CsvWriter, shown, write_csv
from mineral_batch.results.schema import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path
    from typing import BinaryIO

    from mineral_batch.results.read import Results
    from mineral_batch.review.decisions import Decision, Decisions

LABELS = "labels.csv"
#: What a person's decision is evidence of: the model's answer, who decided, and when.
EVIDENCE = ("machine_labels", "reviewer", "time")
#: `path` and `labels` are what training and `evaluate` read. The other columns of the given labels follow.
COLUMNS = ("path", "labels", *EVIDENCE)


@dataclass(frozen=True)
class GivenLabels:
    """Labels that existed before a review.

    Attributes:
        labels: image, as the run names it -> names.
        columns: names of the table's other columns (`split`, `specimen`, ...).
        cells: image -> its cells in these.
        evidence: image -> its cells in `EVIDENCE`, if the table is of an earlier review.
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evidence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_given(path: Path, results: Results) -> GivenLabels:
    """Read existing labels of a run's images.

    Raises:
        DataError: if the table cannot be read, or none of its images is in the run.
    """
    rows, _ = name_labels(read_labels(path), results.predictions.labels)
    images = results.predictions.paths
    matches = match_paths(images, [row.path for row in rows])
    matches.log(images)
    if not matches.index:
        raise DataError(f"none of the {len(rows)} images of {path} is in {results.table}")
    named = {row.path: images[matches.index[row.path]] for row in rows if row.path in matches.index}
    header, cells = read_other_columns(path)
    is_reviewed = set(EVIDENCE) <= set(header)
    evidence = [header.index(name) for name in EVIDENCE] if is_reviewed else []
    others = [place for place in range(len(header)) if place not in evidence]
    return GivenLabels(
        {named[row.path]: row.labels for row in rows if row.path in named},
        tuple(f"given_{header[place]}" if header[place] in EVIDENCE else header[place] for place in others),
        {image: tuple(cells[path][place] for place in others) for path, image in named.items()},
        {image: tuple(cells[path][place] for place in evidence) for path, image in named.items() if evidence},
    )


class LabelTable:
    """The decided labels as a table.

    Args:
        decisions: those in force; images that were rejected or unsure have no row.
        given: labels that existed before. They stay where nobody decided; the cells of their other columns stay
            everywhere.
    """

    def __init__(self, decisions: Collection[Decision] | Decisions, given: GivenLabels) -> None:
        self._decisions = decisions
        self._given = given
        self.header = (*COLUMNS, *given.columns)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The rows: every image whose minerals are known."""
        decided = set()
        for decision in self._decisions:
            decided.add(decision.path)
            if decision.status == "labeled":
                evidence = SEPARATOR.join(decision.machine), decision.reviewer, decision.time
                yield self._row(decision.path, decision.minerals, evidence)
        for path, names in self._given.labels.items():
            if path not in decided:
                yield self._row(path, names, self._given.evidence.get(path, ("", "", "")))

    def _row(self, path: str, names: tuple[str, ...], evidence: tuple[str, ...]) -> tuple[str, ...]:
        others = self._given.cells.get(path, ("",) * len(self._given.columns))
        return path, SEPARATOR.join(names), *evidence, *others

    def write(self, path: Path, recorded: Collection[tuple[str, tuple[str, ...]]] = ()) -> None:
        """Write the table to a file, unless that would replace what people wrote there.

        Args:
            path: the file.
            recorded: (image, labels) of every decision ever made; rows of them and of the given labels may be replaced.

        Raises:
            DataError: if it cannot be written, or has rows or columns of another origin.
        """
        if path.exists() and (foreign := self._foreign(path, recorded)):
            raise DataError(
                f"{path} was left as it is, because it has {foreign} that this review did not write. The decisions "
                f"are kept; write them to a new file with --export NEW.csv, with --labels {path} beside its own rows"
            )
        write_csv(path, self.header, self)

    def _foreign(self, path: Path, recorded: Collection[tuple[str, tuple[str, ...]]]) -> str:
        """What a file has that would be lost, in words."""
        if path.stat().st_size == 0:
            return ""
        try:
            rows = read_labels(path)
            columns = [name for name in read_other_columns(path)[0] if name not in self.header]
        except DataError:
            return "something"
        ours = {*recorded, *self._given.labels.items()}
        others = [row for row in rows if (row.path, row.labels) not in ours]
        if others:
            return f"{len(others)} of {len(rows)} rows (the first: {shown(others[0].path)})"
        return f"columns ({', '.join(columns)})" if columns else ""

    def stream(self, file: BinaryIO) -> None:
        """Write the table to an open file."""
        writer = CsvWriter(file, self.header)
        for row in self:
            writer.write(row)
