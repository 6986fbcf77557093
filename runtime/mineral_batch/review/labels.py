"""Decisions as a table of labels, in the format of a manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labeling_tools import is_tool_file
from mineral_batch.evaluation.labels import match_paths, name_labels, read_labels, read_other_columns
from mineral_batch.files import is_file
from mineral_batch.results.csv import CsvWriter, formula_safe_text, shown, write_csv
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
        elsewhere: image that is not in the run -> names.
        columns: names of the table's other columns (`split`, `specimen`, ...).
        cells: image of either kind -> its cells in these.
        evidence: image of either kind -> its cells in `EVIDENCE`, if the table is of an earlier review.
    """

    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    elsewhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    cells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    evidence: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_given(path: Path, results: Results) -> GivenLabels:
    """Read existing labels of a run's images.

    Raises:
        DataError: if the table cannot be read, or none of its images is in the run.
    """
    rows, _ = name_labels(read_labels(path), results.predictions.labels)
    if is_tool_file(path):  # from somebody else's server into a table for spreadsheets
        rows = [row._replace(labels=tuple(map(formula_safe_text, row.labels))) for row in rows]
    images = results.predictions.paths
    matches = match_paths(images, [row.path for row in rows])
    matches.log(images)
    if not matches.index:
        raise DataError(f"none of the {len(rows)} images of {path} is in {results.table}")
    named = {
        row.path: images[matches.index[row.path]] if row.path in matches.index else _from_anywhere(path, row.path)
        for row in rows
    }
    header, cells = read_other_columns(path)
    is_reviewed = set(EVIDENCE) <= set(header)
    evidence = [header.index(name) for name in EVIDENCE] if is_reviewed else []
    others = [place for place in range(len(header)) if place not in evidence]
    return GivenLabels(
        {named[row.path]: row.labels for row in rows if row.path in matches.index},
        {named[row.path]: row.labels for row in rows if row.path not in matches.index},
        tuple(f"given_{header[place]}" if header[place] in EVIDENCE else header[place] for place in others),
        {image: tuple(cells[path][place] for place in others) for path, image in named.items() if others},
        {image: tuple(cells[path][place] for place in evidence) for path, image in named.items() if evidence},
    )


def _from_anywhere(table: Path, path: str) -> str:
    """A path that also holds in a table in another folder, if it is relative to this one's; else as it is."""
    file = table.parent / path
    return str(file.absolute()) if is_file(file) else path


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
        """The rows: every image whose minerals are known, then those that are not in the run."""
        decided = set()
        for decision in self._decisions:
            decided.add(decision.path)
            if decision.status == "labeled":
                evidence = SEPARATOR.join(decision.machine), decision.reviewer, decision.time
                yield self._row(decision.path, decision.minerals, evidence)
        for path, names in self._given.labels.items():
            if path not in decided:
                yield self._given_row(path, names)
        for path, names in self._given.elsewhere.items():
            yield self._given_row(path, names)

    @property
    def kept(self) -> int:
        """Images of the run that keep their given labels, because nobody decided."""
        return len(self._given.labels.keys() - {decision.path for decision in self._decisions})

    def _given_row(self, path: str, names: tuple[str, ...]) -> tuple[str, ...]:
        return self._row(path, names, self._given.evidence.get(path, ("", "", "")))

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
            raise DataError(f"{path} was left as it is: {foreign}")
        write_csv(path, self.header, self)

    def _foreign(self, path: Path, recorded: Collection[tuple[str, tuple[str, ...]]]) -> str:
        """What a file has that would be lost, and what to do; empty if there is nothing."""
        if path.stat().st_size == 0:
            return ""
        try:
            rows = read_labels(path)
            columns = [name for name in read_other_columns(path)[0] if name not in self.header]
        except DataError:
            return "it is not a table of labels. The decisions are kept; write them to a new file with --export NEW.csv"
        ours = {*recorded, *self._given.labels.items(), *self._given.elsewhere.items()}
        others = [row for row in rows if (row.path, row.labels) not in ours]
        what = f"columns ({', '.join(columns)})" if columns else ""
        what = f"{len(others)} of {len(rows)} rows (the first: {shown(others[0].path)})" if others else what
        return what and (
            f"it has {what} that this review did not write. The decisions are kept; to get them together with what is "
            f"in this file, write both to a new one: --labels {path} --export NEW.csv"
        )

    def stream(self, file: BinaryIO) -> None:
        """Write the table to an open file."""
        writer = CsvWriter(file, self.header)
        for row in self:
            writer.write(row)
