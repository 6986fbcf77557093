"""Which files a delivery may replace: those that an earlier one wrote, as long as nobody has edited them since."""

from __future__ import annotations

import json
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.results.fingerprint import file_digest

#: In the folder of the run: where the deliveries are, and the SHA-256 of each.
DELIVERIES = "deliveries.json"


def require_replaceable(results: Path, target: Path) -> None:
    """Check that a file is not there, or is as an earlier delivery of the run wrote it.

    Raises:
        DataError: if it was edited, or is somebody else's.
    """
    if not target.exists() or target.is_dir():
        return
    digest = _read(results).get(str(target.resolve()))
    if digest is None:
        raise DataError(
            f"{target} is there already and not of a delivery of {results}: move it, or name another file with -o"
        )
    if digest != file_digest(target):
        raise DataError(f"{target} was edited since it was delivered: move it, or name another file with -o")


def note_written(results: Path, target: Path) -> None:
    """Remember a file that was just written.

    Raises:
        DataError: if that cannot be written.
    """
    record = {**_read(results), str(target.resolve()): file_digest(target)}
    write_file(results / DELIVERIES, json.dumps(record, indent=2) + "\n")


def _read(results: Path) -> dict[str, str]:
    """An unreadable record is no record: files are then taken for somebody else's."""
    try:
        record = json.loads((results / DELIVERIES).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
