"""Photographs that are not where a table says, because a folder was renamed or moved after it was written."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from mineral_batch.evaluation.labels import match_paths
from mineral_batch.images.discover import find_images
from mineral_batch.results.csv import shown
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_train.data.manifest import Row

_log = logging.getLogger("mineral_batch")


def find_moved(rows: Sequence[Row], folder: Path, table: Path) -> list[Row]:
    """Give each row whose file is missing the image that `evaluate` would take for it, and say so.

    The images of `folder` are looked through only if a file is missing; `match_paths` has the rules. A row without a
    match keeps its path.

    Args:
        rows: of a table, with absolute paths.
        folder: where its relative paths start.
        table: their file, for the message.

    Raises:
        DataError: if a missing path matches two images, or two of them match one.
    """
    # Not Path.exists: it raises for a name that is too long.
    missing = {row.path for row in rows if not os.path.exists(row.path)}  # noqa: PTH110
    if not missing or not os.path.isdir(folder):  # noqa: PTH112
        return list(rows)
    root = os.path.normpath(folder)
    named = {_relative(str(row.path), root): row.path for row in rows}
    there = [name for name, path in named.items() if path not in missing]
    found = [_relative(os.path.normpath(one), root) for one in find_images([folder]) if not isinstance(one, Failure)]
    images = list(dict.fromkeys([*there, *found]))
    index = match_paths(images, list(named)).index
    moved = {path: images[index[name]] for name, path in named.items() if path in missing and name in index}
    if moved:
        path, image = next(iter(moved.items()))
        _log.warning(
            "%d of the images are not where %s says; they were found by the end of their path, or by a file name that "
            "is there only once: for example %s is %s",
            len(moved), shown(str(table)), shown(_relative(str(path), root)), shown(image),
        )  # fmt: skip
    return [replace(row, path=folder / moved[row.path]) if row.path in moved else row for row in rows]


def _relative(path: str, folder: str) -> str:
    start = folder.rstrip(os.sep) + os.sep
    return path.removeprefix(start)
