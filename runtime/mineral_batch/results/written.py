"""Which files a command may replace: those that it wrote itself, as long as nobody has edited them since."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.results.fingerprint import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterable

#: In the folder of the run: which files the commands wrote about it, wherever they are, and the SHA-256 of each.
RECORD = "written.json"
_MARKER_BYTES = 4096


def require_replaceable(results: Path, target: Path, command: str) -> None:
    """Check that a file is not there, is empty, or is as an earlier command wrote it from the same results.

    Args:
        results: folder of the run.
        target: file to write.
        command: that writes it, for the message.

    Raises:
        DataError: if it was edited, or is somebody else's.
    """
    if not target.is_file() or not target.stat().st_size:
        return
    digest = _read(results).get(str(target.resolve()))
    if digest is None:
        raise _foreign(target, f"was not written by {command} from {results}")
    if digest != file_digest(target):
        raise _foreign(target, f"was edited since {command} wrote it")


def require_marked(target: Path, marker: bytes, command: str) -> None:
    """Check that a file is not there, or begins as this command's files do: for files that nobody edits.

    Raises:
        DataError: if its first 4 KB lack the marker.
    """
    if not target.is_file() or not target.stat().st_size:
        return
    try:
        with target.open("rb") as file:
            is_own = marker in file.read(_MARKER_BYTES)
    except OSError:
        is_own = False
    if not is_own:
        raise _foreign(target, f"was not written by {command}")


def require_not_read(target: Path, inputs: Iterable[Path | None], command: str) -> None:
    """Check that a file to write is none of those that the command reads.

    Raises:
        DataError: if it is one.
    """
    for source in inputs:
        if source is not None and source.exists() and target.exists() and source.samefile(target):
            raise DataError(f"{target} is what {command} reads: name another file to write")


def note_written(results: Path, target: Path) -> None:
    """Remember a file that was just written; where that cannot be written, the next command takes it for a foreign one.

    Raises:
        OSError: if the file is gone.
    """
    record = {**_read(results), str(target.resolve()): file_digest(target)}
    with suppress(DataError):
        write_file(results / RECORD, json.dumps(record, indent=2) + "\n")


def _foreign(target: Path, why: str) -> DataError:
    return DataError(f"{target} is there already and {why}: move it, or name another file")


def _read(results: Path) -> dict[str, str]:
    """An unreadable record is no record: files are then taken for somebody else's."""
    try:
        record = json.loads((results / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
