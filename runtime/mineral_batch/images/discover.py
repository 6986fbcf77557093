"""Finds images: in folders, archives, and named directly, in any mix.

A `Source` is one image that can be read when its turn comes. Nothing here decodes.
"""

from __future__ import annotations

import heapq
import os
import stat
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError, one_line
from mineral_batch.images.archives import (
    ARCHIVE_SUFFIXES,
    OTHER_ARCHIVE_SUFFIXES,
    is_archive,
    members,
    refuse_archive,
    signed_64_bits,
)
from mineral_batch.images.limits import read_file
from mineral_batch.images.lists import expand
from mineral_batch.images.names import OUTPUT_ENTRIES, SYSTEM_FOLDERS, formula_safe, has_image_suffix, output_folders
from mineral_batch.images.parquet import SUFFIXES as PARQUET_SUFFIXES
from mineral_batch.images.parquet import is_parquet, parquet_rows
from mineral_batch.images.remote import find_remote
from mineral_batch.images.skipped import Skipped
from mineral_batch.storage.urls import is_url
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Of files that are not images themselves.
_CONTAINER_SUFFIXES = (*ARCHIVE_SUFFIXES, *OTHER_ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)


def find_sources(inputs: Iterable[str | Path], skipped: Skipped | None = None) -> Iterator[Source | Failure]:
    """Find the images under inputs, lazily, each once and in a fixed order.

    Folders are walked as `find_images` does; a file is read whatever its name; an archive named directly gives its
    images in its own order; a name that does not exist but has `*`, `?` or `[` is a glob (`**` crosses folders), unless
    it comes from a list. URLs come after what is on this machine, see `mineral_batch.images.remote`; a Parquet file
    named directly gives the images of its column, see `mineral_batch.images.parquet`. Of a name twice in
    an archive the last counts; in a tar that is compressed or at a URL the first is read, and the others are failures.

    Args:
        inputs: names of folders, files, archives, and globs.
        skipped: counts what is in folders and archives and not read.

    Raises:
        DataError: if an input does not exist or a glob matches nothing.
    """
    skipped = skipped if skipped is not None else Skipped()
    names = list(expand(inputs))
    urls = [str(name) for name in names if is_url(name)]
    for found in _find((name for name in names if not is_url(name)), skipped):
        if isinstance(found, Failure):
            yield Failure(formula_safe(found.path), found.stage, found.reason)
        elif found.lower().endswith(_CONTAINER_SUFFIXES):
            yield from _contained(found, skipped)
        else:
            yield _file(found)
    yield from find_remote(urls, skipped)


def _contained(name: str, skipped: Skipped) -> Iterator[Source | Failure]:
    """The images in an archive or a Parquet file that was named directly."""
    if is_archive(name):
        yield from members(Path(name), skipped.add_member)
    elif is_parquet(name):
        yield from parquet_rows(Path(name), formula_safe(name))
    else:
        yield Failure(formula_safe(name), "read", refuse_archive(name))


def count_sources(inputs: Iterable[str | Path]) -> int | None:
    """Count what `find_sources` finds; None if that takes too long: for URLs, compressed tars and Parquet files.

    Raises:
        DataError: as `find_sources` does.
    """
    names = list(expand(inputs))
    if any(is_url(name) or is_parquet(str(name)) for name in names):
        return None
    if any(is_archive(str(name)) and not str(name).lower().endswith((".zip", ".tar")) for name in names):
        return None
    # The files are not looked at: a million are counted beside a run that waits for the same interpreter.
    found = _find(names, None)
    return sum(
        sum(1 for _ in members(Path(name))) if isinstance(name, str) and is_archive(name) else 1 for name in found
    )


def find_images(inputs: Iterable[str | Path], skipped: Skipped | None = None) -> Iterator[Path | Failure]:
    """Find the images in folders, and the files named directly, each once and in a fixed order.

    Folders are walked depth first, names sorted by code point; hidden ones, those of systems (`@eaDir`, `#recycle`,
    ...) and the images that `explain` and `report` made are skipped; symbolic links to folders are followed once. A
    folder that may not be read is a `Failure` in its place. Memory grows with the inputs and with one folder's listing,
    not with the tree.

    Args:
        inputs: names of folders and files, taken literally.
        skipped: counts what is in folders and not read.

    Raises:
        DataError: if an input does not exist.
    """
    return (found if isinstance(found, Failure) else Path(found) for found in _find(inputs, skipped))


def _find(inputs: Iterable[str | Path], skipped: Skipped | None) -> Iterator[str | Failure]:
    """Do what `find_images` does, without a path object for each file: there may be a million."""
    seen, skipped = _Seen(), skipped if skipped is not None else Skipped()
    # All are looked at before the first is walked: a mistyped name must not end a run that took hours.
    for name, is_folder in [(Path(name), _is_existing_folder(Path(name))) for name in inputs]:
        if is_folder:
            yield from _walk(name, seen, skipped)
        elif seen.is_new_file(name):
            yield str(name)


def _is_existing_folder(name: Path) -> bool:
    try:
        return stat.S_ISDIR(name.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"no such file or folder: {name} (current folder: {Path.cwd()})") from None
    except OSError as error:
        raise DataError(f"cannot read {name}: {one_line(error)}") from None


class _Seen:
    """The folders walked and the files named so far, by their real paths.

    Inode numbers would be shorter, but network file systems may report the same one for every folder.
    """

    def __init__(self) -> None:
        self._listed: set[str] = set()
        self._named: dict[str, set[str]] = {}

    def list_folder(self, folder: Path, real: str) -> _Listing | None:
        """Return a folder's entries that are still to come; None the second time, in a loop of links for example."""
        if real in self._listed:
            return None
        listing = _Listing(folder, real, self._named.get(real, set()))
        self._listed.add(real)
        return listing

    def is_new_file(self, file: Path) -> bool:
        """Return whether a file that is named directly was neither named before nor found in a folder."""
        folder = os.path.realpath(file.parent)
        named = self._named.setdefault(folder, set())
        is_new = file.name not in named
        named.add(file.name)
        return is_new and not (folder in self._listed and has_image_suffix(file.name))


# Neither can be in a name. The marks sort before every other character, so that they do not change the order of names.
_FOLDER_MARK, _LINK_MARK, _SEPARATOR = "\0", "\0\0", "/"
_NAMES_IN_A_RUN = 4096


class _Listing:
    """A folder's entries in order, read at once; iterating gives (name, mark) of each."""

    def __init__(self, folder: Path, real: str, named: set[str]) -> None:
        self.folder, self.real = folder, real
        self.prefix = "" if folder == Path() else os.path.join(folder, "")  # noqa: PTH118 - ends with a separator
        self._named = named
        present: set[str] = set()
        with os.scandir(folder) as entries:
            self._entries = _sorted(_marked(entry, present) for entry in entries)
        self.output_folders = output_folders(present)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for entry in self._entries:
            name = entry.rstrip(_FOLDER_MARK)
            if name not in self._named:
                yield name, entry[len(name) :]


def _marked(entry: os.DirEntry[str], present: set[str]) -> str:
    if entry.name in OUTPUT_ENTRIES:
        present.add(entry.name)
    if not _is_folder(entry):
        return entry.name
    return entry.name + (_LINK_MARK if entry.is_symlink() else _FOLDER_MARK)


def _sorted(names: Iterable[str]) -> Iterator[str]:
    """Return the names of one folder, all read at once and given in order.

    They are held as sorted runs, each one long string that is taken apart as the runs are merged: a name then costs its
    characters and not a string of its own, and a folder may have a million.
    """
    remaining = iter(names)
    runs = []
    while run := sorted(islice(remaining, _NAMES_IN_A_RUN)):
        runs.append(_SEPARATOR.join(run))
    return heapq.merge(*map(_split, runs))


def _split(run: str) -> Iterator[str]:
    """Do what `run.split(_SEPARATOR)` does, one by one."""
    start = 0
    while (end := run.find(_SEPARATOR, start)) >= 0:
        yield run[start:end]
        start = end + 1
    yield run[start:]


def _walk(root: Path, seen: _Seen, skipped: Skipped) -> Iterator[str | Failure]:
    # A stack of its own: folders may be nested more deeply than Python functions.
    stack: list[tuple[_Listing, Iterator[tuple[str, str]]]] = []
    pending: tuple[Path, str] | None = (root, os.path.realpath(root))
    while pending or stack:
        if pending:
            try:
                listing = seen.list_folder(*pending)
            except OSError as error:
                yield Failure(str(pending[0]), "read", one_line(error))
                listing = None
            pending = None
            if listing is not None:
                stack.append((listing, iter(listing)))
            continue
        listing, entries = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        name, mark = entry
        if mark:
            if _is_walked(name, listing, skipped):
                path = listing.folder / name
                real = os.path.realpath(path) if mark == _LINK_MARK else os.path.join(listing.real, name)  # noqa: PTH118
                pending = path, real
        elif has_image_suffix(name):
            yield listing.prefix + name
        elif not name.startswith("."):
            skipped.add_file(listing.folder / name)


def _is_walked(name: str, listing: _Listing, skipped: Skipped) -> bool:
    if name.lower() in SYSTEM_FOLDERS or name in listing.output_folders:
        skipped.add_folder(name)
        return False
    return not name.startswith(".")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return False for a link that leads nowhere or to itself: reading it will fail, in its own row."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _file(path: str) -> Source | Failure:
    try:
        status = os.stat(path)  # noqa: PTH116 - see _find
    except OSError as error:
        return Failure(formula_safe(path), "read", one_line(error))
    name, modified = formula_safe(path), signed_64_bits(status.st_mtime_ns)
    return Source(name, status.st_size, modified, partial(read_file, path))
