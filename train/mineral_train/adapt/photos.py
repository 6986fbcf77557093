"""The labeled photographs that a model is adapted to, from a table or a folder of folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labeling_tools import is_tool_file, read_tool_labels
from mineral_batch.evaluation.labels import labels_meant
from mineral_batch.minerals import canonical
from mineral_train.adapt.head import FOLDS
from mineral_train.data.folders import (
    TableFormat,
    folder_names,
    is_negative,
    is_undetermined,
    merge_identical,
    read_columns,
    rows_from_folders,
    rows_from_table,
)
from mineral_train.data.labels import label_faults, raise_faults, split_labels
from mineral_train.data.manifest import Row
from mineral_train.data.source import require_found

#: With fewer photographs some folds have one or none.
LEAST_IMAGES = 2 * FOLDS


@dataclass(frozen=True)
class LabeledPhotos:
    """What the user has.

    Attributes:
        rows: photographs; one row for files with the same bytes. Those of the split `test` are held out.
        labels: L names.
        contradictions: files that are there several times with different labels.
        merged: rows that were merged into another with the same bytes.
        renamed: names that were read as another name of a label.
        absent: photographs of the source that are not there.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    contradictions: int
    merged: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[Path, ...] = ()


def read_photos(source: Path, known: Sequence[str], labels: Sequence[str] | None, table: TableFormat) -> LabeledPhotos:
    """Read a table or a folder of folders; names that mean a label of the old model get its name.

    Args:
        source: a CSV, or a folder with one folder per label.
        known: labels of the old model.
        labels: the label set; None takes those that occur.
        table: the columns of a CSV. Rows with `test` in the split column are held out; without such a column none is.

    Raises:
        DataError: if it is missing, has labels that cannot be, or most of its photographs are not there.
    """
    if not source.exists():
        raise DataError(f"no such folder or CSV: {source}")
    names = {name for name in _names(source, table) if source.is_dir() or not is_undetermined(name, known)}
    labels = _occurring(names, known) if labels is None else labels
    raise_faults(str(source), label_faults(tuple(labels)))
    rows = rows_from_folders(source, labels) if source.is_dir() else rows_from_table(source, labels, table)
    require_found(source, rows, table, LEAST_IMAGES)
    merged = merge_identical(rows, labels)
    before = {row.path: frozenset(row.labels) for row in rows}
    changed = sum(before[row.path] != frozenset(row.labels) for row in merged)
    renamed = {name: "; ".join(to) for name in sorted(names) if (to := labels_meant(name, labels)) != (name,)}
    absent = tuple(row.path for row in merged if not row.path.exists())
    return LabeledPhotos(tuple(merged), tuple(labels), changed, len(rows) - len(merged), renamed, absent)


def old_labels(labels: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Which label of the old model each label of the new one is: the same, or one that it is another name of.

    Fluorspar is the old fluorite. A label that is another name as well as a second one (amethyst beside citrine, both
    quartz) is new: the old model does not tell them apart.

    Args:
        labels: of the new model.
        known: of the old one.
    """
    meant = {label: old for label in labels if (old := canonical(label, known))}
    count = Counter(meant.values())
    return {label: old for label, old in meant.items() if label == old or count[old] == 1}


def _names(source: Path, table: TableFormat) -> set[str]:
    """All names of labels, as they are written."""
    if source.is_dir():
        return {name for name in folder_names(source) if not is_negative(name)}
    if is_tool_file(source):
        return {name for _, labels, _ in read_tool_labels(source, warn=False) for name in labels}
    header, records = read_columns(source, table, [])  # what is wrong with it is said where its rows are read
    if table.labels_column not in header:
        raise DataError(
            f"{source} has no column {table.labels_column!r}, only {', '.join(header)}; name it with --labels-column"
        )
    return {name for _, r in records for name in split_labels(r[table.labels_column], table.separator)}


def _occurring(names: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """The labels that names mean: those of the old model first, in its order, then the others by name."""
    meant = {one for name in names for one in labels_meant(name, known)}
    return (*(label for label in known if label in meant), *sorted(meant - set(known)))
