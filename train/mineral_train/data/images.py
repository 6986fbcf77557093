"""Checks of a manifest's photographs, done before a model is built: whatever can be found then is found then."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from mineral_batch.images.decode import load_image
from mineral_batch.minerals import MINERALS
from mineral_batch.model.contract import InputSpec
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure
from mineral_train.data.labels import describe_unknown
from mineral_train.data.manifest import Manifest, Row

#: Below this many validation photographs, or with a single label, a mAP is mostly chance.
FEW_VALIDATION_IMAGES = 20


#: The splits that training looks at.
TRAINED = ("train", "val")
_PURPOSES = dict.fromkeys(TRAINED, "training needs the splits train and val: make them with `mineral-train data`")
_PURPOSES["test"] = "the tables report the test mAP"


def split_faults(manifest: Manifest, splits: Sequence[str] = TRAINED) -> list[str]:
    """Find the splits that are needed and have no label."""
    return [
        f"no image of the split {split!r} has a label; {_PURPOSES[split]}"
        for split in splits
        if not any(row.labels for row in manifest.select(split))
    ]


def file_faults(manifest: Manifest, splits: Sequence[str] = TRAINED) -> list[str]:
    """Find files that are missing or empty, and files that two rows name: by another path, a link, another case.

    The other splits may be elsewhere. A path that is twice in the table counts once: that is a fault of the table.
    """
    faults = []
    first: dict[tuple[int, int], Row] = {}
    for row in {row.path: row for row in manifest.rows if row.split in splits}.values():
        try:
            found = row.path.stat()
        except OSError as error:
            faults.append(f"{row.path}: {error.strerror}{_backslash(row.path)}")
            continue
        other = first.setdefault((found.st_dev, found.st_ino), row)
        if other is not row:
            faults.append(f"{row.path} ({row.split}) is the same file as {other.path} ({other.split}); delete one row")
        elif not stat.S_ISREG(found.st_mode):
            faults.append(f"{row.path} is {'a folder' if stat.S_ISDIR(found.st_mode) else 'not a file'}; name an image")
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
    own = "; for a model of your labels only, list them in a file, one per line: --labels FILE"
    own = own if manifest.labels == MINERALS else ""
    kinds = (("train", "the model cannot learn them", own), ("val", "the mAP does not include them", ""))
    for split, consequence, fix in kinds:
        counts = manifest.targets(split).sum(axis=0).tolist()
        absent = [label for label, count in zip(manifest.labels, counts, strict=True) if not count]
        if absent and len(absent) < len(manifest.labels):
            lines.append(
                f"Warning: {len(absent)} of {len(manifest.labels)} labels have no image in {split!r}, so "
                f"{consequence}: {describe_unknown(absent, ())}{fix}"
            )
    count = len(manifest.select("val"))
    if count < FEW_VALIDATION_IMAGES:
        lines.append(f"Warning: only {count} images in 'val': the validation mAP is mostly chance")
    if manifest.targets("val").all(axis=0).any():
        lines.append("Warning: a label is in every image of 'val', so its AP is always 100%")
    return lines
