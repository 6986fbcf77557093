"""The manifest: one CSV that says which photographs there are, what is in each, and which split each is in.

UTF-8 with a header, columns `path,labels,split` and any others. A path is absolute or, with `/`, relative to the
manifest's folder; labels are joined with `;`, none means that no mineral of the list is in the image.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import csv_line, open_csv

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
SEPARATOR = ";"
_COLUMNS = ("path", "labels", "split")


@dataclass(frozen=True)
class Row:
    """One photograph.

    Attributes:
        path: of the file, absolute.
        labels: the minerals in it, distinct; empty when there is none of the list.
        split: `train`, `val` or `test`.
        extra: the table's other columns, as text.
    """

    path: Path
    labels: tuple[str, ...]
    split: str
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Labelled photographs and the names of their L labels, in the order of a model's outputs."""

    rows: tuple[Row, ...]
    labels: tuple[str, ...]

    def select(self, split: str | None = None) -> list[Row]:
        """The rows of one split in the table's order; all rows for None.

        Raises:
            DataError: if there is no split of that name.
        """
        if split is not None and split not in SPLITS:
            raise DataError(f"no split {split!r}; the splits are {', '.join(SPLITS)}")
        return [row for row in self.rows if split is None or row.split == split]

    def targets(self, split: str | None = None) -> NDArray[np.bool_]:
        """(N, L) bool, true where a mineral is in an image; rows as `select` gives them."""
        return multi_hot([row.labels for row in self.select(split)], self.labels)


def multi_hot(label_sets: Sequence[Iterable[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """(N, L) bool: which of `labels` are in each of the N sets.

    Raises:
        DataError: if a set has a name that is not among `labels`.
    """
    column = {label: k for k, label in enumerate(labels)}
    unknown = {name for names in label_sets for name in names} - set(column)
    if unknown:
        raise DataError(_unknown_labels(unknown, labels))
    table = np.zeros((len(label_sets), len(labels)), bool)
    for row, names in zip(table, label_sets, strict=True):
        row[[column[name] for name in names]] = True
    return table


def read_manifest(path: str | Path, labels: Sequence[str] | None = None) -> Manifest:
    """Read and check a manifest; whether the photographs exist and decode, `mineral-train data` has checked.

    Args:
        path: the CSV.
        labels: L names in the order of the model's outputs; None means the paper's 36 minerals.

    Raises:
        DataError: naming the line, the column or the labels that are wrong, and the nearest right ones.
    """
    path = Path(path)
    names = tuple(MINERALS if labels is None else labels)
    rows = tuple(_rows(path))
    unknown = {label for row in rows for label in row.labels} - set(names)
    if unknown:
        raise DataError(f"{path}: {_unknown_labels(unknown, names)}")
    return Manifest(rows, names)


def _rows(path: Path) -> Iterator[Row]:
    header, records = read_table(path, _COLUMNS)
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r}, only {', '.join(header)}; "
            f"make a manifest of it: mineral-train data {path} -o manifest.csv"
        )
    if not records:
        raise DataError(f"{path} has a header and no rows")
    folder = path.absolute().parent
    first_line: dict[Path, int] = {}
    for line, record in records:
        row = _row(record, folder, f"{path}, line {line}")
        if row.path in first_line:
            raise DataError(f"{path}, line {line}: {row.path} was already in line {first_line[row.path]}; drop one")
        first_line[row.path] = line
        yield row


def _row(record: dict[str, str], folder: Path, where: str) -> Row:
    text, labels, split = (record.pop(name) for name in _COLUMNS)
    if not text:
        raise DataError(f"{where}: the path is empty")
    if split not in SPLITS:
        raise DataError(f"{where}: split must be one of {', '.join(SPLITS)}, not {split!r}")
    return Row(folder / text, split_labels(labels), split, record)


def split_labels(text: str, separator: str = SEPARATOR) -> tuple[str, ...]:
    """The distinct names in one cell, in its order, without the blanks around them."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(separator) if name.strip()))


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest, whole or not at all; `read_manifest` gives an equal one back.

    An image under the manifest's folder gets a relative path, so that the folder can be moved; any other an
    absolute one. A column that only some rows have is empty in the others.

    Raises:
        DataError: if a label contains the separator, a path has no UTF-8 form, or the file cannot be written.
    """
    broken = [label for row in manifest.rows for label in row.labels if split_labels(label) != (label,)]
    if broken:
        raise DataError(f"label {broken[0]!r} is empty, has blanks around it or contains {SEPARATOR!r}: rename it")
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


def read_labels(path: str | Path) -> tuple[str, ...]:
    """A label set from a text file: one name a line, in the order of the model's outputs.

    Raises:
        DataError: if the file is missing, empty, or has a name twice.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read the labels {path}: {why}; it must be UTF-8 text, one name a line") from None
    names = [line.strip() for line in lines if line.strip()]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if not names or doubled:
        fault = f"has {', '.join(doubled)} twice" if doubled else "has no names"
        raise DataError(f"the label file {path} {fault}; it needs distinct names, one a line")
    return tuple(names)


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The most similar of `names`, None where nothing is similar."""
    lower = {known.casefold(): known for known in names}
    found = difflib.get_close_matches(name.casefold(), lower, n=1)
    return lower[found[0]] if found else None


def describe_unknown(unknown: Iterable[str], known: Sequence[str], limit: int = 5) -> str:
    """The unknown names, each with the nearest known one: `'sulfer' (did you mean 'sulfur'?), 'mica'`."""
    listed = sorted(unknown)
    guesses = [(name, nearest(name, known)) for name in listed[:limit]]
    text = ", ".join(f"{name!r}" + (f" (did you mean {guess!r}?)" if guess else "") for name, guess in guesses)
    return text + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def _unknown_labels(unknown: Iterable[str], labels: Sequence[str]) -> str:
    which = "the paper's 36 minerals" if tuple(labels) == MINERALS else f"the {len(labels)} labels"
    return (
        f"labels not among {which}: {describe_unknown(unknown, labels)}; "
        "correct them, or give your own label set: --labels FILE, one name a line"
    )


def read_table(path: str | Path, columns: Sequence[str] = ()) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The header of a CSV and its records, each with the number of its last line in the file.

    Args:
        path: the file.
        columns: that it should have; they tell the delimiter.

    Raises:
        DataError: if the file is missing or not a CSV (see `mineral_batch.results.csv.open_csv`).
    """
    with open_csv(path, sniff=columns, errors="strict") as table:
        records = [(line, dict(zip(table.header, fields, strict=True))) for line, fields in table]
    return list(table.header), records


def write_table(path: str | Path, header: Sequence[str], records: Iterable[Sequence[object]]) -> None:
    """Write a CSV, whole or not at all.

    Raises:
        DataError: if the folder is missing, the disk full, or a text has no UTF-8 form (a file name in another
            encoding); a file that was there before is untouched.
    """
    write_text(path, "".join(f"{csv_line(record)}\n" for record in (header, *records)))


def write_text(path: str | Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all; errors as in `write_table`."""
    try:
        write_file(path, text.encode())
    except UnicodeEncodeError as error:
        wrong = text[max(0, error.start - 40) : error.end + 40]
        raise DataError(f"cannot write {path}: not Unicode text: {wrong!a}; rename the file") from None
