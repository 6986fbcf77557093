"""Sidecars of all images of a run, beside the photographs or in a tree of their own."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

from mineral_batch.deliver.made import remove_empty
from mineral_batch.deliver.records import Delivery, Record
from mineral_batch.deliver.xmp import remove, sidecar, write_sidecar
from mineral_batch.errors import DataError
from mineral_batch.files import is_file, write_errors
from mineral_batch.results.csv import shown


@dataclass
class SidecarCounts:
    """What was written.

    Attributes:
        new: sidecars that were not there before.
        updated: sidecars that an earlier delivery had written into.
        merged: sidecars of other programs that were there.
        missing: images without a file to write beside.
        too_long: images whose name leaves no room for the sidecar's suffix.
    """

    new: int = 0
    updated: int = 0
    merged: int = 0
    missing: int = 0
    too_long: int = 0


def write_sidecars(delivery: Delivery, tree: Path | None, root: str, *, with_suffix: bool) -> SidecarCounts:
    """Write or merge the sidecar of every image.

    Args:
        delivery: the records.
        tree: where; None for beside the photographs.
        root: keyword above all others.
        with_suffix: see `xmp.sidecar`.

    Raises:
        DataError: if two images would share a sidecar, one that is there is not XMP, or the disk refuses.
    """
    counts = SidecarCounts()
    _require_distinct(delivery, tree, with_suffix=with_suffix)
    for record, path in _sidecars(delivery, tree, with_suffix=with_suffix):
        if tree is None and not is_file(delivery.file(record)):
            counts.missing += 1
            continue
        with write_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            change = write_sidecar(path, record, delivery, root)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            counts.too_long += 1
            continue
        counts.new += change == "new"
        counts.updated += change == "updated"
        counts.merged += change == "merged"
    return counts


def remove_sidecars(delivery: Delivery, tree: Path | None, *, with_suffix: bool) -> int:
    """Take back what `write_sidecars` wrote; returns from how many files."""
    removed = 0
    for _, path in _sidecars(delivery, tree, with_suffix=with_suffix):
        removed += is_file(path) and remove(path)
        if tree is not None:
            remove_empty(path.parent, tree)
    if tree is not None:
        with suppress(OSError):  # not empty, or never there
            tree.rmdir()
    return removed


def _sidecars(delivery: Delivery, tree: Path | None, *, with_suffix: bool) -> Iterator[tuple[Record, Path]]:
    for record in delivery.photographs():
        file = delivery.file(record) if tree is None else tree / inside(record.path)
        yield record, sidecar(file, with_suffix=with_suffix)


def inside(path: str) -> PurePath:
    """The path of an image as one below a tree: without root, drive and `..`."""
    image = PurePath(path)
    parts = [part for part in image.relative_to(image.anchor).parts if part not in ("..", ".")]
    return PurePath(*parts)


def _require_distinct(delivery: Delivery, tree: Path | None, *, with_suffix: bool) -> None:
    owners: dict[Path, str] = {}
    for record, path in _sidecars(delivery, tree, with_suffix=with_suffix):
        other = owners.setdefault(path, record.path)
        if other != record.path:
            raise DataError(
                f"{shown(other)} and {shown(record.path)} would share the sidecar {shown(str(path))}: "
                f"leave --adobe-names out"
            )
