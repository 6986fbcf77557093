"""The layout `per-image`: one CSV per predicted image, in a copy of the tree of images."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

from mineral_batch.model.contract import ModelContract
from mineral_batch.results.csv import CsvWriter, formula_safe_text
from mineral_batch.results.rows import TableRow
from mineral_batch.results.schema import DAMAGED_COLUMN, format_number
from mineral_batch.types import Failure

_LONGEST_NAME = 255  # bytes, on every common file system


class PerImageCsv:
    """Writes one CSV per predicted image below a folder.

    Args:
        folder: exists and is empty.
        contract: labels and thresholds.
        extra: columns of the tables, of which these files have `damaged`.
    """

    def __init__(self, folder: Path, contract: ModelContract, extra: Sequence[str] = ()) -> None:
        self._folder = folder
        self._marks_damaged = DAMAGED_COLUMN in extra
        self._contract = contract

    def write(self, row: TableRow | Failure) -> None:
        """Write one image's file; a failure has none."""
        if isinstance(row, Failure):
            return
        values = zip(self._contract.labels, row.values, self._contract.thresholds, strict=True)
        with self._create(row.result.path) as file:
            mark = [formula_safe_text(row.result.damage or "")] if self._marks_damaged else []
            table = CsvWriter(file, ["mineral", "probability", "present", *[DAMAGED_COLUMN] * len(mark)])
            for label, value, threshold in values:
                table.write([label, format_number(value), int(value >= threshold), *mark])

    def _create(self, name: str) -> BinaryIO:
        """Create the image's own file; beside the tree where that is taken, or its path is too long for the system."""
        for place in (mirrored(name), PurePath("%", f"{_digest(name)}.csv")):
            path = self._folder / place
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return path.open("xb")
            except (FileExistsError, NotADirectoryError) as error:
                refused: OSError = error
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                refused = error
        raise refused


def mirrored(name: str) -> PurePath:
    r"""Return where an image's own CSV lies: never outside the folder, on any system.

    The path without its root, followed by `.csv`. What could lead elsewhere (`..`, a drive, a backslash) is
    percent-encoded; a part that would be too long for a file system is cut and ends with a digest.

    >>> mirrored("/photos/2024/a.jpg").as_posix()
    'photos/2024/a.jpg.csv'
    >>> mirrored("../a.jpg").as_posix()
    '%2E%2E/a.jpg.csv'
    >>> mirrored(r"C:\a.jpg").as_posix()
    'C%3A%5Ca.jpg.csv'
    """
    if os.name == "nt":
        name = name.replace("\\", "/")
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or ["%"]
    return PurePath(*map(_safe, folders), _safe(f"{last}.csv"))


def _safe(part: str) -> str:
    """One name that means the same on every system."""
    if part in ("..", "...csv"):
        part = part.replace("..", "%2E%2E", 1)
    for character in "\\:\0":
        part = part.replace(character, f"%{ord(character):02X}")
    content = os.fsencode(part)
    if len(content) <= _LONGEST_NAME:
        return part
    end = f"~{_digest(part)}.csv"
    return content[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
