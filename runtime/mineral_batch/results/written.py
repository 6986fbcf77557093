"""Which files a command may replace: those that it wrote itself, as long as nobody has edited them since.

They are recorded by name, with their SHA-256: the tables of a run in run.json, which describes them, and what other
commands wrote about the run in written.json beside it.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import write_file
from mineral_batch.results.csv import listed
from mineral_batch.results.fingerprint import file_digest
from mineral_batch.results.manifest import read_manifest
from mineral_batch.results.schema import RUN_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: In the folder of the run: which files the commands wrote about it, and the SHA-256 of each. A file in the folder is
#: named by its place there, so that the folder can be moved; any other by its whole path.
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
    digest = _digest(results, target)
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


def is_noted(results: Path, target: Path) -> bool:
    """Whether a command is known to have written a file of this name, which may be gone or edited."""
    return _digest(results, target) is not None


def is_edited(results: Path, target: Path) -> bool:
    """Whether a file is known to have been changed since a command wrote it: by hand, or by another program."""
    digest = _digest(results, target)
    return digest is not None and target.is_file() and digest != file_digest(target)


def require_unedited(results: Path, target: Path, command: str) -> None:
    """Check that nobody edited a file since an earlier command wrote it, as far as that is known.

    For files that the command recognizes as its own in another way; `require_replaceable` also refuses the others.

    Raises:
        DataError: if it was edited.
    """
    if is_edited(results, target):
        raise _foreign(target, f"was edited since {command} wrote it")


def note_written(results: Path, *targets: Path) -> None:
    """Remember files that were just written; where it cannot be noted, the next command takes them for foreign ones.

    Raises:
        OSError: if a file is gone.
    """
    _write(results, {**_read(results), **{_key(results, target): file_digest(target) for target in targets}})


@contextmanager
def replacing(results: Path, *targets: Path) -> Iterator[None]:
    """Remember files that the block writes. One that is killed in it leaves files of which nothing is known."""
    others = {_key(results, target) for target in targets}
    if record := _read(results):
        _write(results, {key: digest for key, digest in record.items() if key not in others})
    yield
    note_written(results, *targets)


def _foreign(target: Path, why: str) -> DataError:
    return DataError(f"{target} is there already and {why}: move it, or name another file")


def _digest(results: Path, target: Path) -> str | None:
    record = _read(results)
    return record.get(_key(results, target)) or record.get(os.path.realpath(target))  # as earlier releases wrote it


def _key(results: Path, target: Path) -> str:
    whole, folder = Path(os.path.realpath(target)), Path(os.path.realpath(results))
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def _write(results: Path, record: dict[str, str]) -> None:
    with suppress(DataError):
        write_file(results / RECORD, json.dumps(record, indent=2) + "\n")


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
