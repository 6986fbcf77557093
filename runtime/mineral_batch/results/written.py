"""Which files a command may replace: those that it wrote itself, as long as nobody has edited them since.

| a file is known by | for |
|---|---|
| its SHA-256 in run.json | the tables of a run |
| its SHA-256 in written.json beside it | tables, workbooks and folders that other commands wrote about the run |
| a seal in the file itself (`mineral_batch.results.seals`) | HTML, Markdown and JSON, wherever they are moved |
"""

from __future__ import annotations

import hashlib
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
from mineral_batch.results.schema import RECORD, RUN_MANIFEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: How to fix it besides moving a table, for a command with -o.
OTHER_FOLDER = ", or choose another folder with -o"
# Of a larger file in a folder the size counts, not the content: nobody edits an image of that kind.
_SMALL = 65_536


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


def refuse_edited_tables(folder: Path, fix: str = OTHER_FOLDER) -> None:
    """Check that the tables that a run is going to replace are as the last one wrote them.

    Args:
        folder: of the output.
        fix: what the command can do besides moving them, for the end of the message.

    Raises:
        DataError: naming the tables that were edited.
    """
    if edited := edited_tables(folder):
        was, it = _words(edited)
        raise DataError(
            f"{_paths(folder, edited)} {was} edited since the last run and would be overwritten: rename or move "
            f"{it}{fix}"
        )


def refuse_foreign_tables(
    folder: Path, names: Iterable[str], command: str, *, has_begun: bool, fix: str = OTHER_FOLDER
) -> None:
    """Check that no file that a run is going to replace or remove is somebody else's.

    Args:
        folder: of the output.
        names: files and folders that the run writes, or removes if it has nothing to write there.
        command: that writes them, for the message.
        has_begun: whether a run of ours has begun there. Without its run.json it was killed while it wrote, and
            nobody knows which of the tables are its own.
        fix: see `refuse_edited_tables`.

    Raises:
        DataError: naming them.
    """
    manifest = read_manifest(folder)
    if manifest is None and has_begun:
        return
    known = set() if manifest is None else {*manifest.digests, *manifest.tables, RUN_MANIFEST}
    names = [*names]
    others = [name for name in (*names, RUN_MANIFEST) if (folder / name).is_file() and name not in known]
    if others:
        was, it = _words(others)
        exist = "exists" if len(others) == 1 else "exist"
        raise DataError(f"{_paths(folder, others)} already {exist} and {was} not written by {command}: move {it}{fix}")
    for name in names:
        if (folder / name).is_dir():  # one file per image
            require_replaceable(folder, folder / name, command)


def require_replaceable(results: Path, target: Path, command: str) -> None:
    """Check that a file is not there, is empty, or is as an earlier command wrote it from the same results.

    Args:
        results: folder of the run.
        target: file or folder to write.
        command: that writes it, for the message.

    Raises:
        DataError: if it was edited, or is somebody else's.
    """
    if is_nothing(target):
        return
    digest = _digest(results, target)
    if digest is None:
        origin = "" if target.resolve().is_relative_to(results.resolve()) else f" from {results}"
        raise foreign(target, f"was not written by {command}{origin}")
    if digest != _content_digest(target):
        raise foreign(target, f"has been edited since {command} wrote it")


def require_not_read(target: Path, inputs: Iterable[Path | None], command: str) -> None:
    """Check that a file to write is none of those that the command reads.

    Raises:
        DataError: if it is one.
    """
    for source in inputs:
        if source is not None and source.exists() and target.exists() and source.samefile(target):
            raise DataError(f"{target} is what {command} reads: choose another file to write")


def is_edited(results: Path, target: Path) -> bool:
    """Whether a file is known to have been changed since a command wrote it: by hand, or by another program."""
    digest = _digest(results, target)
    return digest is not None and target.exists() and digest != _content_digest(target)


def require_unedited(results: Path, target: Path, command: str) -> None:
    """Check that nobody edited a file since an earlier command wrote it, as far as that is known.

    For files that the command recognizes as its own in another way; `require_replaceable` also refuses the others.

    Raises:
        DataError: if it was edited.
    """
    if is_edited(results, target):
        raise foreign(target, f"has been edited since {command} wrote it")


def note_written(results: Path, *targets: Path) -> None:
    """Remember what was just written, files or folders; what cannot be noted is foreign to the next command.

    Raises:
        OSError: if a file is gone.
    """
    _write(results, {**_read(results), **{_key(results, target): _content_digest(target) for target in targets}})


@contextmanager
def replacing(results: Path, *targets: Path) -> Iterator[None]:
    """Remember files that the block writes. One that is killed in it leaves files of which nothing is known."""
    others = {_key(results, target) for target in targets}
    if record := _read(results):
        _write(results, {key: digest for key, digest in record.items() if key not in others})
    yield
    note_written(results, *targets)


def is_nothing(target: Path) -> bool:
    """Return whether there is nothing to lose in a place: no file, or an empty one, or an empty folder."""
    if target.is_dir():
        return next(target.iterdir(), None) is None
    return not target.is_file() or not target.stat().st_size


def _content_digest(target: Path) -> str:
    """SHA-256 of a file; of a folder that of the names, sizes and small files in it."""
    if not target.is_dir():
        return file_digest(target)
    digest = hashlib.sha256()
    for path in sorted(path for path in target.rglob("*") if path.is_file()):
        size = path.stat().st_size
        content = path.read_bytes() if size <= _SMALL else b""
        digest.update(f"{path.relative_to(target).as_posix()}\0{size}\0".encode("utf-8", "surrogateescape") + content)
    return digest.hexdigest()


def foreign(target: Path, why: str) -> DataError:
    """Return the error about a file or folder that must not be replaced; `why` says what is known of it."""
    kind = "folder" if target.is_dir() else "file"
    return DataError(f"{target} already exists and {why}: move it, or choose another {kind}")


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


def _words(names: Sequence[str]) -> tuple[str, str]:
    return ("was", "it") if len(names) == 1 else ("were", "them")
