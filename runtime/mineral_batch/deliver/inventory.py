"""The collection's own inventory, found by its numbers in the paths of images, and its own names for minerals."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mineral_batch.errors import DataError, OptionError
from mineral_batch.results.csv import open_csv

_TOKEN = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Inventory:
    """Rows of an inventory by number.

    Attributes:
        column: that has the numbers.
        header: all columns.
        rows: folded number -> cells, for the numbers of one row only.
        repeated: folded numbers of several rows, which are not joined.
        most: the most words that a number has.
        pattern: finds the number in a path; None looks for the numbers themselves.
    """

    column: str
    header: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    repeated: frozenset[str]
    most: int
    pattern: re.Pattern[str] | None = None

    def number(self, row: tuple[str, ...]) -> str:
        """The number of a row, as the inventory writes it."""
        return row[self.header.index(self.column)].strip()

    def find(self, path: str) -> set[str]:
        """The folded numbers that a path names: in the name of the file, else in its folders.

        A number counts where it stands between other signs than letters and digits, so `12` is not in `X-123`; one
        that is part of a longer one does not count.
        """
        image = PurePosixPath(path.replace("\\", "/"))
        if self.pattern is not None:
            match = self.pattern.search(image.as_posix())
            found = _folded((match[1] if self.pattern.groups else match[0]) or "") if match else ""
            return {found} & (self.rows.keys() | self.repeated) if found else set()
        return self._numbers(image.stem) or self._numbers(image.parent.as_posix())

    def _numbers(self, text: str) -> set[str]:
        tokens = [match.span() for match in _TOKEN.finditer(text)]
        longest: list[tuple[int, int, str]] = []
        for length in range(min(self.most, len(tokens)), 0, -1):
            for first in range(len(tokens) - length + 1):
                start, stop = tokens[first][0], tokens[first + length - 1][1]
                number = _folded(text[start:stop])
                is_inside = any(begin <= start and stop <= end for begin, end, _ in longest)
                if not is_inside and (number in self.rows or number in self.repeated):
                    longest.append((start, stop, number))
        return {number for _, _, number in longest}


def _folded(text: str) -> str:
    return text.strip().casefold()


@dataclass
class Joined:
    """An inventory joined to images.

    Attributes:
        inventory: its rows.
        numbers: path -> folded number, of the images that belong to one row.
        unmatched: images without a number.
        ambiguous: images with several numbers, or one that is in the inventory several times.
        unused: rows without an image.
    """

    inventory: Inventory
    numbers: dict[str, str] = field(default_factory=dict)
    unmatched: int = 0
    ambiguous: int = 0
    unused: int = 0

    def row(self, path: str) -> tuple[str, ...]:
        """The cells that belong to an image; empty ones where none do."""
        number = self.numbers.get(path)
        return ("",) * len(self.inventory.header) if number is None else self.inventory.rows[number]

    def number(self, path: str) -> str:
        """The inventory number of an image; empty where it has none."""
        return self.inventory.number(self.row(path)) if path in self.numbers else ""


def read_inventory(path: Path, column: str, pattern: str | None = None) -> Inventory:
    """Read the inventory of a collection.

    Args:
        path: a CSV file.
        column: with the numbers.
        pattern: regular expression that finds the number in a path, by its first group if it has one.

    Raises:
        OptionError: if the pattern is not a regular expression.
        DataError: if it cannot be read or lacks the column.
    """
    with open_csv(path, sniff=(column,)) as table:
        at = table.index(column)
        cells = [tuple(row) for _, row in table if row[at].strip()]
        header = table.header
    counts = Counter(_folded(row[at]) for row in cells)
    rows = {_folded(row[at]): row for row in cells if counts[_folded(row[at])] == 1}
    repeated = frozenset(number for number, count in counts.items() if count > 1)
    most = max((len(_TOKEN.findall(number)) for number in counts), default=0)
    return Inventory(column, header, rows, repeated, most, _compiled(pattern))


def _compiled(pattern: str | None) -> re.Pattern[str] | None:
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise OptionError(f"--match {pattern} is not a regular expression: {error}") from None


def join(inventory: Inventory, paths: Iterable[str]) -> Joined:
    """Find the row of each image."""
    joined = Joined(inventory)
    for path in paths:
        found = inventory.find(path)
        if not found:
            joined.unmatched += 1
        elif len(found) > 1 or found & inventory.repeated:
            joined.ambiguous += 1
        else:
            (joined.numbers[path],) = found
    joined.unused = len(inventory.rows.keys() - set(joined.numbers.values()))
    return joined


def read_names(path: Path, labels: Iterable[str]) -> dict[str, str]:
    """Read the collection's own names: a CSV with the columns `mineral` and `name`.

    Raises:
        DataError: if it cannot be read, or names a mineral that is not a label of the model.
    """
    with open_csv(path, ("mineral", "name"), sniff=("mineral", "name")) as table:
        names = {row["mineral"].strip(): row["name"].strip() for row in table.dicts() if row["name"].strip()}
    if unknown := names.keys() - set(labels):
        raise DataError(f"{path}: {', '.join(sorted(unknown)[:5])}: no label of the model ({', '.join(labels)})")
    return names
