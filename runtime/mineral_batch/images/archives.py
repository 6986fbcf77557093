"""The images in zip and tar archives, read when their turn comes."""

from __future__ import annotations

import io
import tarfile
import zipfile
from functools import partial
from typing import TYPE_CHECKING, Self

from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.limits import check_bytes
from mineral_batch.images.names import formula_safe, has_image_suffix
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: What is opened as an archive when it is named directly; archives inside a folder are left alone.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def is_archive(name: str) -> bool:
    """Return whether a file that is named directly is opened as an archive."""
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def members(archive: Path) -> Iterator[Source | Failure]:
    """The pictures in an archive; a damaged archive is one failure behind those that it still gave."""
    walk = _zip_members if archive.suffix.lower() == ".zip" else _tar_members
    name = formula_safe(str(archive))
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
        if not member.is_dir() and has_image_suffix(_last(member.filename)):
            read = partial(_read_zip_member, opened, member)
            yield Source(f"{name}/{member.filename}", member.file_size, member.CRC, read)


def _read_zip_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    check_bytes(member.file_size)
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
            if member.isdir() or not has_image_suffix(_last(member.name)):
                continue
            try:
                read = _tar_reader(archive, opened, member)
            except ImageError as error:
                yield Failure(f"{name}/{member.name}", "read", one_line(error))
            else:
                yield Source(f"{name}/{member.name}", member.size, modified, read)


def _tar_reader(archive: Path, opened: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    """How one member is read, now or later; raises `ImageError` for one that cannot be."""
    if not member.isreg():
        what = f"a link to {member.linkname!r}" if member.islnk() or member.issym() else "no regular file"
        raise ImageError(f"{what} inside an archive: unpack the archive to have it read")
    check_bytes(member.size)
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
