"""Which files a command may replace: those that it wrote itself, as long as nobody has edited them since.

They are recorded by name, with their SHA-256: the tables of a run in run.json, which describes them, and what other
commands wrote about the run in written.json beside it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.results.csv import listed
from mineral_batch.results.fingerprint import file_digest
from mineral_batch.results.manifest import read_manifest
from mineral_batch.results.schema import RUN_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: In the folder of the run: which files the commands wrote about it, wherever they are, and the SHA-256 of each.
RECORD = "written.json"
_MARKER_BYTES = 4096


def edited_tables(folder: Path) -> list[str]:
    """Return the names of the tables that were changed since the run wrote them, by hand or by another program."""
    manifest = read_manifest(folder)
    if manifest is None:  # nothing is known about the tables
        return []
    edited = []
    for name, digest in manifest.digests.items():
        with suppress(FileNotFoundError):
            if file_digest(folder / name) != digest:
                edited.append(name)
    return edited


def refuse_edited_tables(folder: Path) -> None:
    """Check that the tables that a run is going to replace are as the last one wrote them.

    Raises:
        DataError: naming the tables that were edited.
    """
    if edited := edited_tables(folder):
        _, was, it = _words(edited)
        raise DataError(
            f"{_paths(folder, edited)} {was} edited since the last run and would be overwritten: rename or move {it}, "
            f"or choose another folder with -o"
        )


def refuse_foreign_tables(folder: Path, names: Iterable[str], command: str, *, has_begun: bool) -> None:
    """Check that no file that a run is going to replace or remove is somebody else's.

    Args:
        folder: of the output.
        names: files that the run writes, or removes if it has nothing to write there.
        command: that writes them, for the message.
        has_begun: whether a run of ours has begun there. Without its run.json it was killed while it wrote, and
            nobody knows which of the tables are its own.

    Raises:
        DataError: naming them.
    """
    manifest = read_manifest(folder)
    if manifest is None and has_begun:
        return
    known = set() if manifest is None else {*manifest.digests, *manifest.tables, RUN_MANIFEST}
    foreign = [name for name in (*names, RUN_MANIFEST) if (folder / name).is_file() and name not in known]
    if foreign:
        is_, was, it = _words(foreign)
        raise DataError(
            f"{_paths(folder, foreign)} {is_} there already and {was} not written by {command}: move {it}, or choose "
            f"another folder with -o"
        )


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


def _paths(folder: Path, names: Sequence[str]) -> str:
    return listed([str(folder / name) for name in names])


def _words(names: Sequence[str]) -> tuple[str, str, str]:
    return ("is", "was", "it") if len(names) == 1 else ("are", "were", "them")
