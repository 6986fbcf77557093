"""What there is to look at: folders, files, globs, lists of names, zip and tar archives, in any mix.

A `Source` is one photograph that can be read when its turn comes. Nothing here decodes.
"""

from __future__ import annotations

import codecs
import glob
import heapq
import io
import os
import stat
import sys
import tarfile
import zipfile
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Self

from mineral_batch.errors import DataError
from mineral_batch.images.decode import PictureError, check_size, one_line, read_file
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


#: What is opened as an archive when it is named directly; archives that merely lie in a folder are left alone.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

# A cell that begins with one of these is a formula to a spreadsheet, and would be run.
FORMULA_SIGNS = tuple("=+-@\t\r\n＝＋－＠")

#: What `find_images` takes for a photograph, in lower case. A file named directly is taken whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".gif", ".bmp", ".dib"}
    | {".avif", ".avifs", ".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".ppm", ".pgm", ".tga"}
)


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
            yield Failure(_harmless(found.path), found.stage, found.reason)
        elif is_archive(found.name):
            yield from _members(found)
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


def is_archive(name: str) -> bool:
    """Whether a file that is named directly is opened as an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


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
        return is_new and not (folder in self._listed and is_photograph(file.name))


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
        elif is_photograph(name) and not is_folder:
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


def is_photograph(name: str) -> bool:
    """Whether a file found in a folder or an archive is taken for a photograph, by its name."""
    return not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES


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
        return Failure(_harmless(str(path)), "read", one_line(error))
    return Source(_harmless(str(path)), status.st_size, status.st_mtime_ns, partial(read_file, path))


def _harmless(name: str) -> str:
    """The same file under a name that a spreadsheet does not take for a formula."""
    return f"./{name}" if name[:1] in FORMULA_SIGNS else name


def _members(archive: Path) -> Iterator[Source | Failure]:
    """The pictures in an archive; a damaged archive is one failure behind those that it still gave."""
    walk = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
    name = _harmless(str(archive))
    try:
        yield from walk(archive, name)
    except OSError as error:
        yield Failure(name, "read", one_line(error))
    # Damaged archives make the readers raise almost anything (struct.error, UnicodeDecodeError, LZMAError, ...).
    except Exception as error:
        yield Failure(name, "read", f"the archive is damaged: {one_line(error)}")


def _zip_members(archive: Path, name: str) -> Iterator[Source | Failure]:
    opened = zipfile.ZipFile(archive)  # not closed here: its members are read later, by other threads
    for member in opened.infolist():
        if not member.is_dir() and is_photograph(_last(member.filename)):
            read = partial(_read_zip_member, opened, member)
            yield Source(f"{name}/{member.filename}", member.file_size, member.CRC, read)


def _read_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    check_size(member.file_size)
    try:
        return opened.read(member)
    except OSError:
        raise
    # A wrong checksum, an unknown compression, a missing password, a damaged stream of any of four kinds.
    except Exception as error:
        raise OSError(one_line(error)) from error


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or halved header for the end of the archive, and what follows would be lost silently."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from None


def _tar_members(archive: Path, name: str) -> Iterator[Source | Failure]:
    modified = archive.stat().st_mtime_ns
    with tarfile.open(archive, "r:*", tarinfo=_StrictTarInfo) as opened:
        for member in opened:
            # tarfile remembers every member it passed, and a shard may hold millions.
            opened.members = []  # type: ignore[attr-defined]
            if member.isdir() or not is_photograph(_last(member.name)):
                continue
            try:
                read = _tar_reader(archive, opened, member)
            except PictureError as error:
                yield Failure(f"{name}/{member.name}", "read", one_line(error))
            else:
                yield Source(f"{name}/{member.name}", member.size, modified, read)


def _tar_reader(archive: Path, opened: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """How one member is read, now or later; raises `PictureError` for one that cannot be."""
    if not member.isreg():
        what = f"a link to {member.linkname!r}" if member.islnk() or member.issym() else "no regular file"
        raise PictureError(f"{what} inside an archive: unpack the archive to have it read")
    check_size(member.size)
    if isinstance(opened.fileobj, io.BufferedReader) and not member.issparse():
        return partial(_read_at, archive, member.offset_data, member.size)
    # A compressed stream cannot be entered in the middle, so it is read as it passes.
    content = opened.extractfile(member)
    assert content is not None
    return partial(bytes, content.read())


def _last(member: str) -> str:
    """The name of a member without its folders; archives made on Windows may have backslashes."""
    return member.replace("\\", "/").rpartition("/")[2]


def _read_at(archive: Path, offset: int, size: int) -> bytes:
    with archive.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError("the archive ends in the middle of this picture")
    return content
