"""What there is to look at: folders, files, globs, lists of names, zip and tar archives, in any mix.

A `Source` is one photograph that can be read when its turn comes. Nothing here decodes.
"""

from __future__ import annotations

import codecs
import glob
import heapq
import os
import stat
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError, one_line
from mineral_batch.images.archives import is_archive, members
from mineral_batch.images.limits import read_file
from mineral_batch.images.names import formula_safe, has_image_suffix
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def find_sources(inputs: Iterable[str | Path]) -> Iterator[Source | Failure]:
    """The photographs under inputs, lazily, each once and in a fixed order.

    Folders are walked as `find_images` does; a file is taken whatever its name; an archive named directly gives its
    pictures in its own order; a name that does not exist but has `*`, `?` or `[` is a glob (`**` crosses folders).
    Of a name that an archive holds twice the first counts in a run's tables.

    Raises:
        DataError: if an input does not exist or a glob matches nothing.
    """
    for found in find_images(_globbed(inputs)):
        if isinstance(found, Failure):
            yield Failure(formula_safe(found.path), found.stage, found.reason)
        elif is_archive(found.name):
            yield from members(found)
        else:
            yield _file(found)


def count_sources(inputs: Iterable[str | Path]) -> int | None:
    """How many `find_sources` gives; None where a compressed tar would have to be read in full to know.

    Raises:
        DataError: as `find_sources` does.
    """
    names = list(_globbed(inputs))
    if any(is_archive(str(name)) and not str(name).lower().endswith((".zip", ".tar")) for name in names):
        return None
    return sum(1 for _ in find_sources(names))


def find_images(inputs: Iterable[str | Path]) -> Iterator[Path | Failure]:
    """The photographs under folders, and the files named directly, each once and in a fixed order.

    Folders are walked depth first, names sorted by code point, hidden ones skipped; symbolic links to folders are
    followed once. A folder that may not be read is a `Failure` in its place. Memory grows with the inputs named and
    with one folder's listing, not with the tree.

    Raises:
        DataError: if an input does not exist.
    """
    seen = _Seen()
    # All are looked at before the first is walked: a mistyped name must not end a run that took hours.
    for given, is_folder in [(Path(given), _is_existing_folder(Path(given))) for given in inputs]:
        if is_folder:
            yield from _walk(given, seen)
        elif seen.is_new_file(given):
            yield given


def _is_existing_folder(given: Path) -> bool:
    try:
        return stat.S_ISDIR(given.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {given} (current folder: {Path.cwd()})") from None
    except OSError as error:
        raise DataError(f"cannot read {given}: {one_line(error)}") from None


class _Seen:
    """The folders walked and the files named so far, however their paths were spelt."""

    def __init__(self) -> None:
        self._listed: set[tuple[int, int]] = set()
        self._named: dict[tuple[int, int], set[str]] = {}

    def list_folder(self, folder: Path) -> Iterator[tuple[str, bool]]:
        """A folder's entries that are still to come, sorted, and whether each is a folder; none the second time."""
        identity = _identity(folder)
        if identity in self._listed:  # a loop of links, or a folder given twice
            return iter(())
        with os.scandir(folder) as listing:
            entries = _sorted(entry.name + _FOLDER_MARK * _is_folder(entry) for entry in listing)
        self._listed.add(identity)
        named = self._named.get(identity, set())
        marked = ((entry.removesuffix(_FOLDER_MARK), entry.endswith(_FOLDER_MARK)) for entry in entries)
        return (entry for entry in marked if entry[0] not in named)

    def is_new_file(self, file: Path) -> bool:
        """For a file that was named directly: neither named before nor found in a folder."""
        folder = _identity(file.parent)
        named = self._named.setdefault(folder, set())
        is_new = file.name not in named
        named.add(file.name)
        return is_new and not (folder in self._listed and has_image_suffix(file.name))


# Neither can be in a name. The mark sorts before every other character, so that it does not change the order of names.
_FOLDER_MARK, _SEPARATOR = "\0", "/"
_NAMES_IN_A_RUN = 4096


def _sorted(names: Iterable[str]) -> Iterator[str]:
    """Names of one folder, all read at once and given in order.

    They are held as sorted runs, each one long string that is taken apart as the runs are merged: a name then costs its
    characters and not a string of its own, and a folder may have a million.
    """
    remaining = iter(names)
    runs = []
    while run := sorted(islice(remaining, _NAMES_IN_A_RUN)):
        runs.append(_SEPARATOR.join(run))
    return heapq.merge(*map(_split, runs))


def _split(run: str) -> Iterator[str]:
    """What `run.split(_SEPARATOR)` does, one by one."""
    start = 0
    while (end := run.find(_SEPARATOR, start)) >= 0:
        yield run[start:end]
        start = end + 1
    yield run[start:]


def _walk(folder: Path, seen: _Seen) -> Iterator[Path | Failure]:
    try:
        entries = seen.list_folder(folder)
    except OSError as error:
        yield Failure(str(folder), "read", one_line(error))
        return
    for name, is_folder in entries:
        if is_folder and not name.startswith("."):
            yield from _walk(folder / name, seen)
        elif has_image_suffix(name) and not is_folder:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for a link that leads nowhere or to itself: reading it will say so, in its own row."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def read_list(file: str | Path) -> list[str]:
    """The inputs listed in a text file, one a line or separated by NUL bytes; `-` is the standard input.

    Raises:
        DataError: if it cannot be read or names nothing.
    """
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the list {file}: {one_line(error)}") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    separator = b"\0" if b"\0" in content else b"\n"
    names = [os.fsdecode(line.removesuffix(b"\r")) for line in content.split(separator) if line.strip()]
    if not names:
        raise DataError(f"the list {file} is empty: it needs one file or folder a line")
    return names


def _globbed(inputs: Iterable[str | Path]) -> Iterator[str | Path]:
    for given in inputs:
        if os.path.lexists(given) or not glob.has_magic(str(given)):
            yield given
            continue
        matches = sorted(glob.glob(str(given), recursive=True))  # noqa: PTH207 - pathlib refuses absolute patterns
        if not matches:
            raise DataError(f"nothing matches {given} (current folder: {Path.cwd()})")
        yield from matches


def _file(path: Path) -> Source | Failure:
    try:
        status = path.stat()
    except OSError as error:
        return Failure(formula_safe(str(path)), "read", one_line(error))
    return Source(formula_safe(str(path)), status.st_size, status.st_mtime_ns, partial(read_file, path))
