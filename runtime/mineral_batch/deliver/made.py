"""What a delivery made in a tree of files, listed in the tree, so that it can be taken back and nothing else is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.files import write_errors
from mineral_batch.images.names import DELIVERED
from mineral_batch.results.csv import open_csv, write_csv

#: The list, in the tree; folders beside it are not read as photographs again.
MADE = DELIVERED
_COLUMNS = ("file", "path", "kind", "bytes")


class Made(NamedTuple):
    """A file that was made.

    Attributes:
        file: below the tree.
        path: of the image.
        kind: `symbolic` or `hard` links, or `copy`.
        bytes: size of the file when it was made.
    """

    file: str
    path: str
    kind: str
    bytes: int


def read_made(tree: Path) -> dict[str, Made]:
    """Read what earlier deliveries made, by file; nothing where there is no list."""
    if not (tree / MADE).is_file():
        return {}
    with open_csv(tree / MADE, _COLUMNS) as table:
        rows = (Made(row["file"], row["path"], row["kind"], int(row["bytes"])) for row in table.dicts())
        return {row.file: row for row in rows}


def begin_tree(tree: Path) -> dict[str, Made]:
    """Return what earlier deliveries made in a tree; begin its list where it is new.

    `predict` reads nothing in the folders of such a tree, so it may hold nothing else at first.

    Raises:
        DataError: if it holds other files and no list, or cannot be written.
    """
    if (tree / MADE).is_file():
        return read_made(tree)
    if tree.is_dir() and any(tree.iterdir()):
        raise DataError(
            f"{tree} holds other files, which predict would no longer read beside a delivery: name a new or empty "
            f"folder with -o"
        )
    with write_errors(tree):
        tree.mkdir(parents=True, exist_ok=True)
    write_made(tree, ())
    return {}


def write_made(tree: Path, rows: Iterable[Made]) -> None:
    """Write the list.

    Raises:
        DataError: if it cannot be written.
    """
    write_csv(tree / MADE, _COLUMNS, rows)


def take_back(tree: Path, rows: Iterable[Made]) -> int:
    """Remove files that are still what was made: links, and files of the same size; returns how many."""
    removed = 0
    for row in rows:
        place = PurePath(row.file)
        file = tree / place
        if place.is_absolute() or ".." in place.parts or not os.path.lexists(file):
            continue
        is_link = row.kind == "symbolic"
        if file.is_symlink() == is_link and (is_link or file.stat().st_size == row.bytes):
            file.unlink()
            removed += 1
        remove_empty(file.parent, tree)
    return removed


def remove_empty(folder: Path, tree: Path) -> None:
    """Remove the empty folders from one up to the tree, the tree itself excepted."""
    with suppress(OSError):  # not empty, or gone already
        while folder != tree and tree in folder.parents:
            folder.rmdir()
            folder = folder.parent


def undo(tree: Path) -> tuple[int, int]:
    """Remove what was made and has not been changed since; returns how many files, and how many were left.

    Raises:
        DataError: if nothing was made there.
    """
    rows = read_made(tree)
    if not rows and not (tree / MADE).is_file():
        raise DataError(f"nothing to undo: no {MADE} in {tree}")
    removed = take_back(tree, rows.values())
    left = [row for row in rows.values() if os.path.lexists(tree / row.file)]
    (tree / MADE).unlink()
    with suppress(OSError):
        tree.rmdir()
    return removed, len(left)
