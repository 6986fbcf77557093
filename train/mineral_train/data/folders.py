"""Rows from labeled images as people keep them: one folder per mineral, or a table of their own.

The public download of the paper's photographs (Zeng et al. 2021, Minerals 11, 506) is 36 folders with a mineral's
name each; an image of several minerals lies in several of them, byte for byte the same.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labeling_tools import is_tool_file, photo_in, read_tool_labels
from mineral_batch.evaluation.labels import COLUMN_NAMES, UNDETERMINED, labels_meant
from mineral_batch.images.discover import find_images
from mineral_batch.minerals import canonical
from mineral_batch.results.csv import shown
from mineral_batch.types import Failure
from mineral_train.data.duplicates import classes, connected, identical_files
from mineral_train.data.labels import NEGATIVE_NAMES, SEPARATOR, describe_unknown, raise_faults, split_labels
from mineral_train.data.manifest import SPLITS, Row, absolute_path, read_table
from mineral_train.data.moved import find_moved

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

_log = logging.getLogger("mineral_batch")

SPLIT = "split"
_SPLIT_NAMES = {**{name: name for name in SPLITS}, "training": "train", "valid": "val", "validation": "val"}


def folder_names(root: Path) -> list[str]:
    """List the folders in `root` in alphabetical order, without hidden ones.

    Raises:
        DataError: if `root` is not a folder or has none in it.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{root} has no folders in it; it needs one folder of images per mineral")
    return names


def is_negative(name: str) -> bool:
    """Whether a folder holds photographs that show none of the labels."""
    return name.casefold() in NEGATIVE_NAMES


def rows_from_folders(root: Path, labels: Sequence[str], *, ignore_unknown: bool = False) -> list[Row]:
    """Make one row per image under `root/<label>/`, at any depth; its split is empty.

    The images under `root/none/` (or `_none`) have no label: they show none of the label set.

    Args:
        root: the folder of folders.
        labels: the label set.
        ignore_unknown: leave out folders that are not named after a label.

    Raises:
        DataError: if a folder is not named after a label, or there are no images.
    """
    meaning = {name: () if is_negative(name) else _meaning(name, labels) for name in folder_names(root)}
    unknown = [name for name, label in meaning.items() if label is None]
    if unknown and not ignore_unknown:
        raise DataError(
            f"{root}: folders not named after a label: {describe_unknown(unknown, labels)}; rename them (`none` is for "
            "photographs that show none of the labels), leave them out with --ignore-unknown, or make every folder a "
            "label with --labels folders"
        )
    known = [(name, names) for name, names in meaning.items() if names is not None]
    rows = [Row(path.absolute(), names, "") for name, names in known for path in _images(root / name)]
    if not rows:
        raise DataError(f"{root} has no images in folders named after minerals")
    return rows


def _meaning(name: str, labels: Sequence[str]) -> tuple[str, ...] | None:
    label = canonical(name, labels)
    return None if label is None else (label,)


def _images(folder: Path) -> Iterator[Path]:
    for found in find_images([folder]):
        if isinstance(found, Failure):
            raise DataError(f"cannot read {found.path}: {found.reason}; make it readable, or move it away")
        yield found


@dataclass(frozen=True)
class TableFormat:
    """The columns of a CSV and how it writes labels.

    Attributes:
        path_column: name of the column of paths.
        labels_column: name of the column of labels.
        separator: between the labels of one image.
        split_column: name of the column of splits to keep, None to leave the split empty. `training`, `valid` and
            `validation` are understood; a row without one is for training.
        root: the folder that paths are relative to, None for the table's own.
    """

    path_column: str = "path"
    labels_column: str = "labels"
    separator: str = SEPARATOR
    split_column: str | None = None
    root: Path | None = None


def rows_from_table(
    table: Path, labels: Sequence[str], columns: TableFormat | None = None, *, ignore_unknown: bool = False
) -> list[Row]:
    """Make one row per record of a CSV with an image's path and its labels; other columns are kept.

    An image that is not where the table says is looked for as `evaluate` does (`moved.find_moved`).

    Args:
        table: the CSV, UTF-8 with a header; or what a labeling tool exports (`read_tool_labels`).
        labels: the label set.
        columns: of the CSV.
        ignore_unknown: leave unknown labels out; the image stays with its others, or with none.

    Raises:
        DataError: naming the column that is missing, or all lines that are wrong and all labels that are unknown.
    """
    columns = columns or TableFormat()
    folder = (columns.root or table.parent).absolute()
    rows, faults = (_tool_rows if is_tool_file(table) else _csv_rows)(table, columns, folder)
    rows = _determined(rows, labels, table)
    meant = _meant(rows, labels)
    unknown = {name for name, labels_of_it in meant.items() if not labels_of_it}
    raise_faults(str(table), faults, [] if ignore_unknown or not unknown else [_unknown(unknown, labels)])
    known = [replace(row, labels=tuple(dict.fromkeys(n for name in row.labels for n in meant[name]))) for row in rows]
    return find_moved(known, folder, table)


def read_columns(
    table: Path, columns: TableFormat, faults: list[str]
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the header and the records of a CSV, by the names that `evaluate` knows unless the user named the columns.

    Args:
        table: the CSV.
        columns: its columns.
        faults: gets a line for each record of another width than the header.

    Raises:
        DataError: as `read_table`.
    """
    named = {"path": columns.path_column, "labels": columns.labels_column, SPLIT: columns.split_column or SPLIT}
    synonyms = {name: column for name, column in COLUMN_NAMES.items() if named[column] == column}
    return read_table(table, [columns.path_column, columns.labels_column], synonyms=synonyms, faults=faults)


def is_undetermined(name: str, labels: Sequence[str]) -> bool:
    """Whether a name says that nobody knows what an image shows, and is no label."""
    return name.casefold() in UNDETERMINED and name not in labels


def _determined(rows: list[Row], labels: Sequence[str], table: Path) -> list[Row]:
    """The rows without those whose label says that it is not known; a line in the log counts these."""
    known = [row for row in rows if not any(is_undetermined(name, labels) for name in row.labels)]
    if left_out := len(rows) - len(known):
        _log.warning("%s: images left out, as their label says that it is not known: %d", shown(str(table)), left_out)
    return known


def _csv_rows(table: Path, columns: TableFormat, folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of a CSV, and what is wrong with it."""
    faults: list[str] = []
    header, records = read_columns(table, columns, faults)
    _require_columns(table, header, columns)
    if not records and not faults:
        raise DataError(f"{table} has a header and no rows")
    rows = [_table_row(record, columns, folder) for _, record in records]
    for (line, record), row in zip(records, rows, strict=True):
        if not record[columns.path_column]:
            faults.append(f"line {line}: the path is empty")
        if columns.split_column and row.split not in SPLITS:
            faults.append(_wrong_split(row.split, f"line {line}"))
    return rows, faults


def _tool_rows(table: Path, columns: TableFormat, folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of a labeling tool's file, and what is wrong with it."""
    keeps = columns.split_column is not None
    rows = [
        Row(absolute_path(folder, path), names, _split(split) if keeps else "", {})
        for path, names, split in read_tool_labels(table)
    ]
    return rows, [_wrong_split(row.split, str(row.path)) for row in rows if keeps and row.split not in SPLITS]


def _require_columns(table: Path, header: Sequence[str], columns: TableFormat) -> None:
    fixes = {
        columns.path_column: "name it with --path-column",
        columns.labels_column: "name it with --labels-column",
        columns.split_column: "leave --keep-split out to make a new split",
    }
    for name, fix in fixes.items():
        if name is not None and name not in header:
            raise DataError(f"{table} has no column {name!r}, only {', '.join(header)}; {fix}")


def _table_row(record: Mapping[str, str], columns: TableFormat, folder: Path) -> Row:
    names = split_labels(record[columns.labels_column], columns.separator)
    split = _split(record[columns.split_column]) if columns.split_column else ""
    taken = {columns.path_column, columns.labels_column, "path", "labels", SPLIT}
    extra = {name: text for name, text in record.items() if name not in taken}
    return Row(absolute_path(folder, photo_in(record[columns.path_column])), names, split, extra)


def is_split_name(text: str) -> bool:
    """Whether a cell names a split."""
    return text.strip().casefold() in _SPLIT_NAMES


def _split(text: str) -> str:
    """The split that a cell names; the text itself where it names none."""
    return _SPLIT_NAMES.get(text.strip().casefold(), text) if text.strip() else "train"


def _wrong_split(text: str, where: str) -> str:
    return f"{where}: split must be one of {', '.join(SPLITS)}, not {text!r}"


def _meant(rows: Iterable[Row], labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Each name in use -> the labels that it stands for, none if it is unknown."""
    known = {*labels}
    meant = {name: labels_meant(name, labels) for name in {name for row in rows for name in row.labels}}
    return {name: tuple(label for label in found if label in known) for name, found in meant.items()}


def _unknown(unknown: Iterable[str], labels: Sequence[str]) -> str:
    return (
        f"labels not in the label set: {describe_unknown(unknown, labels)}; correct them, leave them out with "
        "--ignore-unknown, or give your own set with --labels FILE, one name a line"
    )


def merge_identical(rows: Sequence[Row], labels: Sequence[str]) -> list[Row]:
    """Merge rows that have the same path or the same bytes; the labels are united, in the order of `labels`.

    It has the path, the split and the other columns of the first of them.
    """
    unique = _merged(rows, classes((row.path, i) for i, row in enumerate(rows)), labels)
    links = identical_files([row.path for row in unique])
    same = classes((group, i) for i, group in enumerate(connected(len(unique), links).tolist()))
    return _merged(unique, same, labels)


def _merged(rows: Sequence[Row], groups: Iterable[Sequence[int]], labels: Sequence[str]) -> list[Row]:
    order = {label: k for k, label in enumerate(labels)}

    def together(members: Sequence[int]) -> Row:
        names = {name for i in members for name in rows[i].labels}
        return replace(rows[members[0]], labels=tuple(sorted(names, key=order.__getitem__)))

    return [together(members) for members in groups]
