"""The images in zip and tar archives, read when their turn comes."""

from __future__ import annotations

import io
import mmap
import tarfile
import zipfile
from array import array
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Self, cast

from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.formats import may_be_image
from mineral_batch.images.limits import check_bytes
from mineral_batch.images.names import formula_safe, has_image_suffix
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Skip = Callable[[str], object]

#: What is opened as an archive when it is named directly; archives inside a folder are left alone.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
#: Archives that are not opened.
OTHER_ARCHIVE_SUFFIXES = (".7z", ".rar", ".tar.zst", ".tzst", ".tar.lz4", ".tar.z", ".tar.lz", ".tar.br")

# The signatures of an entry in a zip's directory and of a member; bits of their flags, the second one of the high byte.
_ZIP_ENTRY, _ZIP_MEMBER, _ZIP_ENCRYPTED, _ZIP_UTF8 = b"PK\x01\x02", b"PK\x03\x04", 1, 8

_AGAIN = (
    "a later version of an image above, not read: of a name that occurs twice tar means the last, but this archive can "
    "only be read from its beginning; unpack it"
)

# From this size on, bytes, a member's first bytes are looked at before the rest is read.
_LARGE = 16 * 2**20


def ignore(_: str) -> None:
    """Take a name that nobody counts."""


def is_archive(name: str) -> bool:
    """Return whether a file that is named directly is opened as an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def refuse_archive(name: str) -> str:
    """Return why an archive that is named directly is not opened; empty if it is none, or opened."""
    if not name.lower().endswith(OTHER_ARCHIVE_SUFFIXES):
        return ""
    suffix = next(suffix for suffix in OTHER_ARCHIVE_SUFFIXES if name.lower().endswith(suffix))
    return f"{suffix} archives are not opened: unpack it, or pack it as .zip or .tar"


def signed_64_bits(number: int) -> int:
    """Return a number that databases can store, different for numbers that differ by less than 2^64."""
    return (number + 2**63) % 2**64 - 2**63


def members(archive: Path, skip: Skip = ignore) -> Iterator[Source | Failure]:
    """Find the images in an archive; a damaged archive is one failure behind the images that it still gave.

    Args:
        archive: the file.
        skip: called with the name, without its folders, of each file that is not read because of its name.
    """
    walk = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
    name = formula_safe(str(archive))
    try:
        yield from walk(archive, name, skip)
    except OSError as error:
        yield Failure(name, "read", one_line(error))
    # Damaged archives make the readers raise almost anything (struct.error, UnicodeDecodeError, LZMAError, ...).
    except Exception as error:
        yield Failure(name, "read", f"the archive is damaged: {one_line(error)}")


def _zip_members(archive: Path, name: str, skip: Skip) -> Iterator[Source | Failure]:
    try:
        opened = zipfile.ZipFile(archive)
    except UnicodeDecodeError:
        opened = zipfile.ZipFile(cast("IO[bytes]", _with_readable_names(archive)))
    yield from zip_members(opened, name, skip)


def zip_members(opened: zipfile.ZipFile, name: str, skip: Skip = ignore) -> Iterator[Source | Failure]:
    """Find the images in an open zip, which stays open: its members are read later, by other threads.

    Args:
        opened: the archive.
        name: of the archive, for the rows.
        skip: see `members`.
    """
    for member in opened.infolist():
        is_last = opened.NameToInfo.get(member.filename) is member  # of a name twice, as for every program that unpacks
        if not is_last or member.is_dir():
            continue
        if not has_image_suffix(_last(member.filename)):
            pass_over(member.filename, skip)
        else:
            read = partial(_read_zip_member, opened, member)
            yield Source(f"{name}/{member.filename}", member.file_size, member.CRC, read)


class _Mapped(mmap.mmap):
    """Memory that zipfile takes for a file; `seekable` is missing before Python 3.13."""

    def seekable(self) -> bool:
        return True


def _with_readable_names(archive: Path) -> _Mapped:
    """Return a file in which no name claims to be UTF-8 without being it: one such name would cost all others.

    The archive is mapped into memory; pages that are changed are this process's own.
    """
    with archive.open("rb") as file:
        content = _Mapped(file.fileno(), 0, access=mmap.ACCESS_COPY)
    at = content.find(_ZIP_ENTRY)
    while at >= 0:
        flags, length = content[at + 9], int.from_bytes(content[at + 28 : at + 30], "little")
        try:
            content[at + 46 : at + 46 + length].decode()
        except UnicodeDecodeError:
            content[at + 9] = flags & ~_ZIP_UTF8
            local = int.from_bytes(content[at + 42 : at + 46], "little")
            if content[local : local + 4] == _ZIP_MEMBER:  # the same flags again, before the member's data
                content[local + 7] &= ~_ZIP_UTF8
        at = content.find(_ZIP_ENTRY, at + 46)
    return content


def _read_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    check_bytes(member.file_size)
    if member.flag_bits & _ZIP_ENCRYPTED:
        raise OSError("encrypted: unpack the archive with its password")
    try:
        if member.file_size <= _LARGE:
            return opened.read(member)
        with opened.open(member) as file:
            return _read_image(file, member.filename)
    except (OSError, ImageError):
        raise
    # A wrong checksum, an unknown compression, a damaged stream of any of four kinds.
    except Exception as error:
        raise OSError(one_line(error)) from error


def _read_image(file: IO[bytes], name: str) -> bytes:
    """Read a large member, unless its first bytes are no image's: an archive of megabytes may unpack to gigabytes."""
    head = file.read(4096)
    if not may_be_image(head, name):
        raise ImageError("not an image, or in a format that is not supported")
    return head + file.read()


class StrictTarInfo(tarfile.TarInfo):
    """Refuses a damaged or halved header.

    tarfile takes it for the end of the archive, and what follows would be lost silently.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        """Read the next header."""
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {tarfile_.offset}") from None


class Repeats:
    """Finds names that come again in a tar that is compressed or at a URL.

    The last one counts, as tar means it. But such an archive can only be read from its beginning, so when the last one
    comes, the first has been predicted. It becomes a failure instead of a silent choice. A name costs about 80 bytes.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._times: Counter[str] = Counter()

    def check(self, row: str) -> Failure | None:
        """Take the next name; return a failure, with a name of its own, if it came before."""
        key = hash(row)
        if key not in self._seen:
            self._seen.add(key)
            return None
        self._times[row] += 1
        return Failure(f"{row} ({self._times[row] + 1})", "read", _AGAIN)


def _tar_members(archive: Path, name: str, skip: Skip) -> Iterator[Source | Failure]:
    modified = signed_64_bits(archive.stat().st_mtime_ns)
    superseded = _superseded(archive)
    repeats = Repeats()
    with _open_tar(archive) as opened:
        for index, member in enumerate(tar_headers(opened)):
            if member.isdir() or index in superseded:
                continue
            if not has_image_suffix(_last(member.name)):
                pass_over(member.name, skip)
                continue
            if again := repeats.check(f"{name}/{member.name}"):
                yield again
                continue
            try:
                read = _tar_reader(archive, opened, member)
            except ImageError as error:
                yield Failure(f"{name}/{member.name}", "read", one_line(error))
            else:
                yield Source(f"{name}/{member.name}", member.size, modified, read)


def _open_tar(archive: Path) -> tarfile.TarFile:
    return tarfile.open(archive, "r:*", tarinfo=StrictTarInfo)


def tar_headers(opened: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar, one after the other, without keeping them."""
    for member in opened:
        # tarfile remembers every member it passed, and a shard may hold millions.
        opened.members = []  # type: ignore[attr-defined]
        yield member


def _superseded(archive: Path) -> frozenset[int]:
    """Return the indices of members whose name comes again later, which is how tar replaces a file.

    Only for an uncompressed tar, whose headers can be read without its data; eight bytes are kept of each.
    """
    if archive.suffix.lower() != ".tar":
        return frozenset()
    names = array("q")
    with suppress(Exception), _open_tar(archive) as opened:  # damage is reported where the members are read
        names.extend(hash(member.name) for member in tar_headers(opened))
    last = {name: index for index, name in enumerate(names)} if len(set(names)) < len(names) else {}
    return frozenset(index for index, name in enumerate(names) if last and last[name] != index)


def _tar_reader(archive: Path, opened: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """How one member is read, now or later; raises `ImageError` for one that cannot be."""
    _check_member(member)
    if isinstance(opened.fileobj, io.BufferedReader) and not member.issparse():
        return partial(_read_at, archive, member.offset_data, member.size)
    # A compressed stream cannot be entered in the middle, so it is read as it passes.
    return partial(bytes, read_image_member(opened, member))


def read_image_member(opened: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a member of a tar as it passes.

    Raises:
        ImageError: if it is not a regular file, empty, too large, or large and no image.
    """
    _check_member(member)
    content = opened.extractfile(member)
    assert content is not None
    return _read_image(content, member.name) if member.size > _LARGE else content.read()


def _check_member(member: tarfile.TarInfo) -> None:
    if not member.isreg():
        what = f"a link to {member.linkname!r}" if member.islnk() or member.issym() else "no regular file"
        raise ImageError(f"{what} inside an archive: unpack the archive to have it read")
    check_bytes(member.size)


def pass_over(member: str, skip: Skip) -> None:
    """Call back for a member that is not read because of its name, unless it is hidden."""
    name = _last(member)
    if not name.startswith("."):
        skip(name)


def _last(member: str) -> str:
    """The name of a member without its folders; archives made on Windows may have backslashes."""
    return member.replace("\\", "/").rpartition("/")[2]


def _read_at(archive: Path, offset: int, size: int) -> bytes:
    with archive.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError("the archive ends in the middle of this image")
    return content
