"""Finds images: in folders, archives, and named directly, in any mix.

A `Source` is one image that can be read when its turn comes. Nothing here decodes.
"""

from __future__ import annotations

import heapq
import os
import stat
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.arguments import require_path, require_several
from mineral_batch.errors import DataError, one_line
from mineral_batch.images.archives import (
    ARCHIVE_SUFFIXES,
    OTHER_ARCHIVE_SUFFIXES,
    is_archive,
    members,
    refuse_archive,
    signed_64_bits,
)
from mineral_batch.images.expand import expand_once
from mineral_batch.images.limits import read_file
from mineral_batch.images.lists import NameList
from mineral_batch.images.names import OUTPUT_ENTRIES, SYSTEM_FOLDERS, formula_safe, has_image_suffix, output_folders
from mineral_batch.images.parquet import SUFFIXES as PARQUET_SUFFIXES
from mineral_batch.images.parquet import is_parquet, parquet_rows
from mineral_batch.images.remote import find_remote
from mineral_batch.images.seen import SeenNames
from mineral_batch.images.skipped import Skipped
from mineral_batch.storage.urls import is_url, local_path
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

#: Why a name that leads nowhere is a failure.
NOT_THERE = "no such file or folder"
# Of files that are not images themselves.
_CONTAINER_SUFFIXES = (*ARCHIVE_SUFFIXES, *OTHER_ARCHIVE_SUFFIXES, *PARQUET_SUFFIXES)


def find_sources(
    inputs: Iterable[str | Path | NameList], skipped: Skipped | None = None, *, keep_missing: bool = False
) -> Iterator[Source | Failure]:
    """Find the images under inputs, lazily, each once and in a fixed order.

    Folders are walked as `find_images` does; a file is read whatever its name; an archive named directly gives its
    images in its own order; a name that does not exist but has `*`, `?` or `[` is a glob (`**` crosses folders), unless
    it comes from a list. URLs come after what is on this machine, see `mineral_batch.images.remote`; a Parquet file
    named directly gives the images of its column, see `mineral_batch.images.parquet`. Of a name twice in
    an archive the last counts; in a tar that is compressed or at a URL the first is read, and the others are failures.

    Args:
        inputs: names of folders, files, archives, and globs, and lists of names.
        skipped: counts what is in folders and archives and not read.
        keep_missing: yield a failure for an input that does not exist, as for a name in a list.

    Raises:
        DataError: if an input does not exist, unless `keep_missing`, or a glob matches nothing; a name in a list that
            does not exist is a failure.
    """
    skipped = skipped if skipped is not None else Skipped()
    parts = expand_once(inputs)
    for found in _find(parts, skipped, keep_missing=keep_missing):
        if isinstance(found, Failure):
            yield Failure(formula_safe(found.path), found.stage, found.reason)
        elif found.lower().endswith(_CONTAINER_SUFFIXES):
            yield from _contained(found, skipped)
        else:
            yield _file(found)
    yield from find_remote(parts, skipped)


def _contained(name: str, skipped: Skipped) -> Iterator[Source | Failure]:
    """The images in an archive or a Parquet file that was named directly."""
    if is_archive(name):
        yield from members(Path(name), skipped.add_member)
    elif is_parquet(name):
        yield from parquet_rows(Path(name), formula_safe(name))
    else:
        yield Failure(formula_safe(name), "read", refuse_archive(name))


def count_sources(inputs: Iterable[str | Path | NameList]) -> int | None:
    """Count what `find_sources` finds; None if that takes too long: for URLs, compressed tars and Parquet files.

    Raises:
        DataError: as `find_sources` does.
    """
    parts = expand_once(inputs)
    if any(map(takes_long, chain.from_iterable(parts))):
        return None
    # The files are not looked at: a million are counted beside a run that waits for the same interpreter.
    found = _find(parts, None)
    return sum(
        sum(1 for _ in members(Path(name))) if isinstance(name, str) and is_archive(name) else 1 for name in found
    )


def takes_long(name: str | Path) -> bool:
    """Return whether listing an input means more than reading folders: a URL, a compressed tar, a Parquet file."""
    text = str(name)
    return is_url(name) or is_parquet(text) or (is_archive(text) and not text.lower().endswith((".zip", ".tar")))


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
        OptionError: if `inputs` is a single name, or one of them is no name.
        DataError: if an input does not exist.
    """
    require_several("inputs", inputs, " of names, as in find_images(['photos'])")
    names = list(inputs)
    for name in names:
        require_path("each of inputs", name)
    found = _find([names], skipped)
    return (one if isinstance(one, Failure) else Path(one) for one in found)


def _find(
    parts: Iterable[NameList | list[str | Path]], skipped: Skipped | None, *, keep_missing: bool = False
) -> Iterator[str | Failure]:
    """Do what `find_images` does, without a path object for each file: there may be a million. URLs are passed over."""
    seen, skipped = _Seen(), skipped if skipped is not None else Skipped()
    # All are looked at before the first is walked: a mistyped name must not end a run that took hours.
    look = partial(_look, keep_missing=keep_missing)
    looked = [part if isinstance(part, NameList) else list(map(look, filter(_is_local, part))) for part in parts]
    for name, is_folder in chain.from_iterable(_listed(one) if isinstance(one, NameList) else one for one in looked):
        if is_folder:
            yield from _walk(name, seen, skipped)
        elif is_folder is None:
            yield Failure(str(name), "read", NOT_THERE)
        elif seen.is_new_file(name):
            yield str(name)


def _is_local(name: str | Path) -> bool:
    return not is_url(name)


def _look(name: str | Path, *, keep_missing: bool) -> tuple[Path, bool | None]:
    path = Path(name)
    try:
        return path, _is_folder_there(path)
    except (FileNotFoundError, NotADirectoryError):
        if keep_missing:
            return path, None
        raise DataError(f"{NOT_THERE}: {path} (current folder: {Path.cwd()})") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from None


def _listed(names: NameList) -> Iterator[tuple[Path, bool | None]]:
    """The names of a list on this machine, and whether each is a folder; None if it is not there."""
    for name in names:
        path = local_path(name) if is_url(name) else Path(name)
        if path is None:
            continue
        try:
            yield path, _is_folder_there(path)
        except (FileNotFoundError, NotADirectoryError):
            yield path, None
        except OSError:  # its row says why, when the file is looked at
            yield path, False


def _is_folder_there(path: Path) -> bool:
    return stat.S_ISDIR(path.stat().st_mode)


class _Seen:
    """The folders walked and the files named so far, by their real paths.

    Inode numbers would be shorter, but network file systems may report the same one for every folder.
    """

    def __init__(self) -> None:
        self._listed: set[str] = set()
        self._named, self._folders = SeenNames(), set[str]()
        self._real_path = lru_cache(1024)(os.path.realpath)  # of folders: a list names many files of each

    def list_folder(self, folder: Path, real: str) -> _Listing | None:
        """Return a folder's entries that are still to come; None the second time, in a loop of links for example."""
        if real in self._listed:
            return None
        listing = _Listing(folder, real, _Below(self._named, real) if real in self._folders else ())
        self._listed.add(real)
        return listing

    def is_new_file(self, file: Path) -> bool:
        """Return whether a file that is named directly was neither named before nor found in a folder."""
        folder = self._real_path(file.parent)
        self._folders.add(folder)
        is_new = self._named.add(os.path.join(folder, file.name))  # noqa: PTH118 - see find_images
        return is_new and not (folder in self._listed and has_image_suffix(file.name))


class _Below:
    """The files of one folder that were named directly."""

    def __init__(self, named: SeenNames, folder: str) -> None:
        self._named, self._prefix = named, os.path.join(folder, "")  # noqa: PTH118 - ends with a separator

    def __contains__(self, name: object) -> bool:
        return f"{self._prefix}{name}" in self._named


# Neither can be in a name. The marks sort before every other character, so that they do not change the order of names.
_FOLDER_MARK, _LINK_MARK, _SEPARATOR = "\0", "\0\0", "/"
_NAMES_IN_A_RUN = 4096


class _Listing:
    """A folder's entries in order, read at once; iterating gives (name, mark) of each."""

    def __init__(self, folder: Path, real: str, named: Container[str]) -> None:
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
