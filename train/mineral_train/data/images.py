"""Checks of a manifest's photographs, done before a model is built: whatever can be found then is found then."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import InputSpec
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure
from mineral_train.data.labels import describe_unknown, raise_faults
from mineral_train.data.manifest import Manifest, Row

#: Below this many validation photographs, or with a single label, a mAP is mostly chance.
FEW_VALIDATION_IMAGES = 20


def check_images(manifest: Manifest, path: Path | str) -> None:
    """Check that training is possible: every file is there, is one photograph, and both splits have labels.

    Args:
        manifest: read from `path`.
        path: for the message.

    Raises:
        DataError: naming all faults at once.
    """
    used = [row for row in manifest.rows if row.split != "test"]
    faults = [
        f"no image of the split {split!r} has a label; training needs the splits train and val: make them with "
        "`mineral-train data`"
        for split in ("train", "val")
        if not manifest.targets(split).any()
    ]
    raise_faults(str(path), faults + _file_faults(used))


def _file_faults(rows: Sequence[Row]) -> list[str]:
    """Files that are missing or empty, and files that two rows name: by another path, a link, another case."""
    faults = []
    first: dict[tuple[int, int], Row] = {}
    for row in rows:
        try:
            found = row.path.stat()
        except OSError as error:
            faults.append(f"{row.path}: {error.strerror}{_backslash(row.path)}")
            continue
        other = first.setdefault((found.st_dev, found.st_ino), row)
        if other is not row:
            faults.append(f"{row.path} ({row.split}) is the same file as {other.path} ({other.split}); delete one row")
        elif found.st_size == 0:
            faults.append(f"{row.path}: the file is empty")
    return faults


def _backslash(path: Path) -> str:
    return "; write / for the backslashes in its path" if os.sep != "\\" and "\\" in str(path) else ""


def undecodable(rows: Sequence[Row], spec: InputSpec) -> list[Failure]:
    """Decode every photograph and return those that fail."""
    results = bounded_map(lambda row: load_image(row.path, spec), rows, cpu_count(), "check")
    return [result for result in results if isinstance(result, Failure)]


def warnings(manifest: Manifest) -> list[str]:
    """Say what a run on this manifest cannot learn or cannot measure, one line each."""
    lines = []
    for split, consequence in (("train", "the model cannot learn them"), ("val", "the mAP does not include them")):
        counts = manifest.targets(split).sum(axis=0).tolist()
        absent = [label for label, count in zip(manifest.labels, counts, strict=True) if not count]
        if absent and len(absent) < len(manifest.labels):
            lines.append(
                f"warning: {len(absent)} of {len(manifest.labels)} labels have no image in {split!r}, so "
                f"{consequence}: {describe_unknown(absent, ())}"
            )
    count = len(manifest.select("val"))
    if count < FEW_VALIDATION_IMAGES:
        lines.append(f"warning: only {count} images in 'val': the validation mAP is mostly chance")
    if manifest.targets("val").all(axis=0).any():
        lines.append("warning: a label is in every image of 'val', so its AP is always 100 %")
    return lines
