"""Make a manifest from photographs as people keep them: find, merge, check, group, split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure
from mineral_train.data.duplicates import (
    MAX_DISTANCE,
    MIN_CORRELATION,
    classes,
    connected,
    link_classes,
    near_duplicates,
    thumbnails,
)
from mineral_train.data.folders import TableFormat, merge_identical, rows_from_folders, rows_from_table
from mineral_train.data.manifest import Manifest, Row
from mineral_train.data.parents import with_parents
from mineral_train.data.splits import PAPER_SHARES, fractions_of, stratified_split

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.types import Pixels
    from mineral_train.data.duplicates import Links

#: Wraps the decoding of `total` images to show how far it is; `tqdm.tqdm` is one.
Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Preparation:
    """How to make a manifest.

    Attributes:
        table: the columns of a CSV; unused for folders.
        ignore_unknown: leave out folders, or labels of a CSV, that are not in the label set.
        imply_parents: an image of a variety also gets its species and group, where they are labels: agate is quartz.
        group_column: CSV column naming the specimen; its images stay in one split. Empty cells do not count.
        shares: of training, validation and test.
        seed: of the split.
        duplicate_distance: see `near_duplicates`; -1 looks for none.
        duplicate_correlation: see `near_duplicates`.
        threads: decoding threads; None for one per CPU.
    """

    table: TableFormat = field(default_factory=TableFormat)
    ignore_unknown: bool = False
    imply_parents: bool = False
    group_column: str | None = None
    shares: Sequence[float] = PAPER_SHARES
    seed: int = 0
    duplicate_distance: int = MAX_DISTANCE
    duplicate_correlation: float = MIN_CORRELATION
    threads: int | None = None

    def __post_init__(self) -> None:
        fractions_of(self.shares)  # a mistake in them must not wait until all images are decoded


@dataclass(frozen=True)
class Prepared:
    """A manifest of N images and how it was made.

    Attributes:
        manifest: the images that can be decoded, each in a split.
        groups: (N,) numbers; images of one specimen, and near-duplicates, have the same.
        rejected: the images that cannot be decoded.
        merged: rows that became one with another of the same path or bytes.
        near_duplicates: (P, 2) rows that are near-duplicates of each other.
    """

    manifest: Manifest
    groups: NDArray[np.int64]
    rejected: tuple[Failure, ...]
    merged: int
    near_duplicates: Links

    def groups_across_splits(self) -> list[tuple[Row, Row]]:
        """For every group with images in several splits, two rows of different splits."""
        rows = self.manifest.rows
        first: dict[int, Row] = {}
        torn: dict[int, tuple[Row, Row]] = {}
        for group, row in zip(self.groups.tolist(), rows, strict=True):
            if first.setdefault(group, row).split != row.split:
                torn.setdefault(group, (first[group], row))
        return list(torn.values())


def prepare(
    source: Path, labels: Sequence[str], how: Preparation | None = None, progress: Progress | None = None
) -> Prepared:
    """Make a manifest of a folder of folders, or of a CSV; nothing is written.

    Args:
        source: a folder with one folder per mineral, or a CSV.
        labels: the label set, in the order of the model's outputs.
        how: the options.
        progress: called with an iterator over the images and `total`.

    Raises:
        DataError: if the source is missing or empty, has unknown labels, or none of its images can be decoded.
    """
    how = how or Preparation()
    rows_found = _read_rows(source, labels, how)
    merged = merge_identical(rows_found, labels)
    if how.imply_parents:
        merged = [with_parents(row, labels) for row in merged]
    rows, thumbs, rejected = _decode_all(merged, how.threads or cpu_count(), progress)
    alike = near_duplicates(thumbs, how.duplicate_distance, how.duplicate_correlation)
    groups = connected(len(rows), alike, _links_by_value(rows, how.group_column))
    manifest = Manifest(tuple(rows), tuple(labels))
    if how.table.split_column is None:
        splits = stratified_split(manifest.targets(), groups, how.shares, how.seed)
        manifest = replace(manifest, rows=tuple(replace(row, split=s) for row, s in zip(rows, splits, strict=True)))
    return Prepared(manifest, groups, tuple(rejected), len(rows_found) - len(merged), alike)


def _read_rows(source: Path, labels: Sequence[str], how: Preparation) -> list[Row]:
    if not source.exists():
        raise DataError(f"no such folder or CSV: {source}")
    if not source.is_dir():
        rows = rows_from_table(source, labels, how.table, ignore_unknown=how.ignore_unknown)
    elif how.group_column or how.table != TableFormat():
        raise DataError(
            f"{source} is a folder; columns, separators, --root and --keep-split are for a CSV: leave them out"
        )
    else:
        rows = rows_from_folders(source, labels, ignore_unknown=how.ignore_unknown)
    if how.group_column and how.group_column not in rows[0].extra:
        raise DataError(f"{source} has no column {how.group_column!r} to group by; it has {', '.join(rows[0].extra)}")
    return rows


def _decode_all(
    rows: Sequence[Row], threads: int, progress: Progress | None
) -> tuple[list[Row], Pixels, list[Failure]]:
    """Decode all images: the good rows, their thumbnails, and the failures of the others."""
    looks: Iterable[Pixels | Failure] = thumbnails([row.path for row in rows], threads)
    if progress is not None:
        looks = progress(looks, total=len(rows))
    good, thumbs, rejected = [], [], []
    for row, look in zip(rows, _named(rows, looks), strict=True):
        if isinstance(look, Failure):
            rejected.append(look)
        else:
            good.append(row)
            thumbs.append(look)
    if not good:
        raise DataError(
            f"none of the {len(rows)} images can be read; the first is {rejected[0].path}: {rejected[0].reason}; "
            "if a CSV's paths are relative to a folder other than its own, name it with --root"
        )
    return good, np.stack(thumbs), rejected


def _named(rows: Iterable[Row], looks: Iterable[Pixels | Failure]) -> Iterator[Pixels | Failure]:
    """Reject the images whose name has no UTF-8 form, for a CSV cannot hold it."""
    for row, look in zip(rows, looks, strict=True):
        name = str(row.path).encode(errors="backslashreplace").decode()
        yield (look if name == str(row.path) else Failure(name, "read", "its name is not UTF-8; rename the file"))


def _links_by_value(rows: Sequence[Row], column: str | None) -> Links:
    """Link the rows that share a value, other than an empty one, in a column."""
    named = ((row.extra[column], i) for i, row in enumerate(rows) if column and row.extra[column])
    return link_classes(classes(named))
