"""Archives at URLs, as WebDataset shards are: read from their beginning to their end, as they come."""

from __future__ import annotations

import tarfile
import tempfile
import zipfile
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.archives import (
    Repeats,
    Skip,
    StrictTarInfo,
    ignore,
    pass_over,
    read_image_member,
    tar_headers,
    zip_members,
)
from mineral_batch.images.names import has_image_suffix
from mineral_batch.images.versions import same_version
from mineral_batch.storage.errors import StoreError
from mineral_batch.storage.store import open_store
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.storage.interface import Check, Entry
    from mineral_batch.storage.urls import Url


def shard_members(url: Url, name: str, version: int, skip: Skip = ignore) -> Iterator[Source | Failure]:
    """Find the images in an archive at a URL; a damaged one is one failure behind the images that it still gave.

    A tar is streamed: an image is held until it is decoded. A zip has its directory at its end, so it is first copied
    to a temporary file.

    Args:
        url: of the archive.
        name: of the archive, for the rows.
        version: of the archive, for `Source.modified`.
        skip: see `archives.members`.
    """
    try:
        with open_store(url).open(url.key, _check(url, version)) as file:
            if url.path.lower().endswith(".zip"):
                yield from _zip(file, name, skip)
            else:
                yield from _tar(file, name, version, skip)
    except (OSError, StoreError, ImageError) as error:
        yield Failure(name, "read", one_line(error))
    # See `archives.members`.
    except Exception as error:
        yield Failure(name, "read", f"the archive is damaged: {one_line(error)}")


def _check(url: Url, version: int) -> Check:
    """Refuse an archive that is not the listed one any more, or of which half would look whole."""
    same = same_version(url, 0, version)

    def check(now: Entry) -> None:
        same(now)
        if not now.is_delimited:
            raise ImageError(
                "the server gives no length, so an archive that breaks off would look complete: download it first"
            )

    return check


def _tar(file: BinaryIO, name: str, version: int, skip: Skip) -> Iterator[Source | Failure]:
    repeats = Repeats()
    with tarfile.open(fileobj=file, mode="r|*", tarinfo=StrictTarInfo) as opened:
        for member in tar_headers(opened):
            if member.isdir():
                continue
            if not has_image_suffix(member.name.rpartition("/")[2]):
                pass_over(member.name, skip)
                continue
            row = f"{name}/{member.name}"
            if again := repeats.check(row):
                yield again
                continue
            try:
                content = read_image_member(opened, member)
            except ImageError as error:
                yield Failure(row, "read", one_line(error))
            else:
                yield Source(row, member.size, version, partial(bytes, content))


def _zip(file: BinaryIO, name: str, skip: Skip) -> Iterator[Source | Failure]:
    # Closed when its last member has been read: the members hold it.
    copy = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115
    while block := file.read(2**20):
        copy.write(block)
    yield from zip_members(zipfile.ZipFile(copy), name, skip)
