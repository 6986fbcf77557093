"""What a user's table holds besides paths and labels, and whether its photographs are where it says."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labeling_tools import is_tool_file, photo_in, read_tool_labels
from mineral_train.data.folders import SPLIT, TableFormat, is_split_name, read_columns

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_train.data.manifest import Row

SPECIMEN = "specimen"
_PARENTS = 3
_PROBED = 20


def split_column(source: Path, table: TableFormat) -> tuple[str | None, str]:
    """Find the column `split` of a CSV.

    Returns:
        Its name, None if there is none or it holds other words than splits (cells may be empty); and in that second
        case the first of these words, else "".
    """
    header, records = _read(source, table)
    if SPLIT not in header:
        return None, ""
    cells = [record[SPLIT].strip() for _, record in records if record[SPLIT].strip()]
    other = next((cell for cell in cells if not is_split_name(cell)), "")
    return (SPLIT if cells and not other else None), other


def specimen_column(source: Path, table: TableFormat) -> str | None:
    """The column `specimen` of a CSV if it has one with anything in it, else None."""
    header, records = _read(source, table)
    is_there = SPECIMEN in header and any(record[SPECIMEN] for _, record in records)
    return SPECIMEN if is_there and SPECIMEN not in (table.path_column, table.labels_column) else None


def _read(source: Path, table: TableFormat) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    if source.is_dir() or not source.exists() or is_tool_file(source):
        return [], []
    return read_columns(source, table, [])  # what is wrong with it is said where its rows are read


def found_root(source: Path, table: TableFormat) -> Path | None:
    """Find the folder where a table's relative paths start, if it is not the table's own.

    The paths of `labels.csv` start where `predict` was run, and the table is in the folder of the results.

    Returns:
        None if the folder is named, the first paths lead to photographs from the table's own folder, or nowhere.
    """
    if table.root is not None or source.is_dir() or not source.exists():
        return None
    folder = source.absolute().parent
    paths = [path for path in islice(_paths(source, table), _PROBED) if not Path(path).is_absolute()]
    if not paths or any(_is_there(folder / path) for path in paths):
        return None
    return next((base for base in _elsewhere(source, folder) if all(_is_there(base / path) for path in paths)), None)


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path's raises for long names


def _paths(source: Path, table: TableFormat) -> Iterator[str]:
    if is_tool_file(source):
        yield from (path for path, _, _ in read_tool_labels(source, warn=False))
        return
    header, records = _read(source, table)
    if table.path_column in header:
        yield from (photo_in(record[table.path_column]) for _, record in records)


def require_found(source: Path, rows: Sequence[Row], table: TableFormat, least: int) -> None:
    """Check that enough photographs of a CSV exist, before any is decoded.

    Raises:
        DataError: if fewer than `least` do because others are missing; it says where they were looked for.
    """
    missing = [row.path for row in rows if not os.path.exists(row.path)]  # noqa: PTH110 - Path's raises for long names
    if not missing or len(rows) - len(missing) >= least or source.is_dir():
        return
    count = "none" if len(missing) == len(rows) else f"only {len(rows) - len(missing)}"
    folder = (table.root or source.parent).absolute()
    message = f"{source}: {count} of its {len(rows)} photographs were found; there is no {missing[0]}"
    if not missing[0].is_relative_to(folder):
        raise DataError(f"{message}: correct the paths in the table")
    there = next(
        (base for base in _elsewhere(source, folder) if (base / missing[0].relative_to(folder)).exists()), None
    )
    raise DataError(
        f"{message}. Relative paths start in {folder}"
        + (f", but this photograph is in {there}: --root {there}" if there else "; name another folder with --root DIR")
    )


def _elsewhere(source: Path, folder: Path) -> Iterator[Path]:
    """Folders where relative paths may also start: the current one, and those above the table."""
    for base in (Path.cwd(), *list(source.absolute().parents)[:_PARENTS]):
        if base != folder:
            yield base
