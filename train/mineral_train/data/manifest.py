"""The manifest: one CSV that lists the photographs, what each shows, and which split it is in.

UTF-8 with a header, columns `path,labels,split` and any others. A path is absolute or, with `/`, relative to the
manifest's folder, or to the current folder if the manifest is at a URL: photographs are on this machine. Labels are
joined with `;`. An empty cell, or `none`, means that the photograph shows none of the labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import csv_line, open_csv
from mineral_batch.storage.models import fetch
from mineral_batch.storage.urls import is_url
from mineral_train.data.labels import SEPARATOR, label_faults, raise_faults, split_labels, unknown_labels
from mineral_train.model.fetched import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
_COLUMNS = ("path", "labels", "split")


@dataclass(frozen=True)
class Row:
    """One photograph.

    Attributes:
        path: of the file, absolute, without `.` and `..`.
        labels: what it shows, distinct; empty if it shows none of the label set.
        split: `train`, `val` or `test`.
        extra: the table's other columns, as text.
    """

    path: Path
    labels: tuple[str, ...]
    split: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Labeled photographs and the names of their L labels, in the order of a model's outputs."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]

    def select(self, split: str | None = None) -> list[Row]:
        """Return the rows of one split in the table's order; all rows for None.

        Raises:
            DataError: if there is no split of that name.
        """
        if split is not None and split not in SPLITS:
            raise DataError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        return [row for row in self.rows if split is None or row.split == split]

    def targets(self, split: str | None = None) -> NDArray[np.bool_]:
        """(N, L) bool, true if a photograph shows a label; rows as `select` gives them."""
        return multi_hot([row.labels for row in self.select(split)], self.labels)


def multi_hot(label_sets: Sequence[Iterable[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """(N, L) bool: which of `labels` are in each of the N sets.

    Raises:
        DataError: if a set has a name that is not among `labels`.
    """
    column = {label: k for k, label in enumerate(labels)}
    unknown = {name for names in label_sets for name in names} - set(column)
    if unknown:
        raise DataError(unknown_labels(unknown, labels))
    table = np.zeros((len(label_sets), len(labels)), bool)
    for row, names in zip(table, label_sets, strict=True):
        row[[column[name] for name in names]] = True
    return table


def read_manifest(path: str | Path, labels: Sequence[str] | None = None) -> Manifest:
    """Read a manifest and check its text; `images.check_images` checks the photographs.

    Args:
        path: the CSV, or its URL.
        labels: L names in the order of the model's outputs; None means the paper's 36 minerals.

    Raises:
        DataError: naming all that is wrong: lines, columns, labels and the nearest right ones.
    """
    manifest, faults = inspect_manifest(path, labels)
    raise_faults(shown(path), label_faults(manifest.labels), faults)
    return manifest


def inspect_manifest(path: str | Path, labels: Sequence[str] | None = None) -> tuple[Manifest, list[str]]:
    """Read a manifest as `read_manifest` does, and list the faults of its rows instead of raising them.

    Returns:
        The rows that have a path, with their other faults, and all faults; the names of `labels` are not checked.

    Raises:
        DataError: if the file cannot be read, lacks a column, or has no rows.
    """
    names = tuple(MINERALS if labels is None else labels)
    folder = table_folder(path)
    rows, faults = _rows(fetch(path), shown(path), folder)
    unknown = {label for row in rows for label in row.labels} - set(names)
    if unknown:
        faults.append(unknown_labels(unknown, names))
    return Manifest(tuple(row for row in rows if row.path != absolute_path(folder, "")), names), faults


def table_folder(path: str | Path) -> Path:
    """Return the folder to which a table's paths are relative: its own, or the current one for a table at a URL."""
    return Path.cwd() if is_url(path) else Path(path).absolute().parent


def _rows(path: Path, name: str, folder: Path) -> tuple[list[Row], list[str]]:
    """The rows that can be read, and what is wrong with the others."""
    faults: list[str] = []
    header, records = read_table(path, _COLUMNS, faults=faults)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{name} has no column {missing[0]!r}, only {', '.join(header)}; "
            f"make a manifest from it: mineral-train data {name} -o manifest.csv"
        )
    if not records and not faults:
        raise DataError(f"{name} has a header and no rows")
    rows: list[Row] = []
    first_line: dict[Path, int] = {}
    for line, record in records:
        text, labels, split = (record.pop(name) for name in _COLUMNS)
        row = Row(absolute_path(folder, text), split_labels(labels), split, record)
        if row.path == absolute_path(folder, ""):
            faults.append(f"line {line}: the path is empty")
        elif row.path in first_line:
            faults.append(f"line {line}: {row.path} was already in line {first_line[row.path]}; delete one")
        if split not in SPLITS:
            faults.append(f"line {line}: split must be one of {', '.join(SPLITS)}, not {split!r}")
        first_line.setdefault(row.path, line)
        rows.append(row)
    return rows, faults


def absolute_path(folder: Path, text: str) -> Path:
    """The path that a table means, without `.` and `..`, so that one file has one path."""
    return Path(os.path.normpath(folder / text))


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest atomically; `read_manifest` gives an equal one back.

    A photograph under the manifest's folder gets a relative path, so that the folder can be moved; any other an
    absolute one. A column that only some rows have is empty in the others.

    Raises:
        DataError: if a name cannot be a label, a path has no UTF-8 form, or the file cannot be written.
    """
    raise_faults(f"cannot write {path}", label_faults(sorted({label for row in manifest.rows for label in row.labels})))
    folder = Path(path).absolute().parent
    extra = list(dict.fromkeys(name for row in manifest.rows for name in row.extra))
    records = (
        [
            _relative(row.path, folder),
            SEPARATOR.join(row.labels),
            row.split,
            *(row.extra.get(name, "") for name in extra),
        ]
        for row in manifest.rows
    )
    write_table(path, [*_COLUMNS, *extra], records)


def _relative(path: Path, folder: Path) -> str:
    path = path.absolute()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def read_table(
    path: str | Path,
    columns: Sequence[str] = (),
    *,
    synonyms: Mapping[str, str] | None = None,
    faults: list[str] | None = None,
) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read the header of a CSV and its records, each with the number of its last line in the file.

    Args:
        path: the file.
        columns: that it should have, in any case; they decide the delimiter (`,`, `;` or a tab).
        synonyms: other names of these columns, in lower case -> the column.
        faults: gets a line for each record that has more or fewer fields than the header; None raises.

    Raises:
        DataError: if the file is missing or not a CSV (see `mineral_batch.results.csv.open_csv`).
    """
    names = {**(synonyms or {}), **{name.casefold(): name for name in columns}}
    with open_csv(path, sniff=columns, synonyms=names, errors="strict") as table:
        rows = table if faults is None else table.rows(faults)
        records = [(line, dict(zip(table.header, fields, strict=True))) for line, fields in rows]
    return list(table.header), records


def write_table(path: str | Path, header: Sequence[str], records: Iterable[Sequence[object]]) -> None:
    """Write a CSV atomically.

    Raises:
        DataError: if the folder is missing, the disk full, or a text has no UTF-8 form (a file name in another
            encoding); a file that was there before is untouched.
    """
    write_text(path, "".join(f"{csv_line(record)}\n" for record in (header, *records)))


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8 atomically; errors as in `write_table`."""
    try:
        write_file(path, text.encode())
    except UnicodeEncodeError as error:
        wrong = text[max(0, error.start - 40) : error.end + 40]
        raise DataError(f"cannot write {path}: not Unicode text: {wrong!a}; rename the file") from None
