"""From the names in a plan back to images that can be read, on whichever machine the piece is worked on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path, PurePath

from mineral_batch.cluster.parts import PlannedImage
from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.archives import is_archive, members, signed_64_bits
from mineral_batch.images.limits import read_file
from mineral_batch.images.remote import read_object
from mineral_batch.storage.urls import is_url, parse
from mineral_batch.types import Failure, Source

#: How the reason of a failure begins that another try may mend: the piece is then left for later. A mark in the text
#: survives the way from a decode process.
TEMPORARY = "not now: "
_CHANGED = "it has changed since the run was planned"
# The image's own fault, or a decision of its owner: a row of failures.csv. Everything else is the machine's.
_FINAL = frozenset(
    [
        errno.ENOENT,
        errno.EACCES,
        errno.EPERM,
        errno.EISDIR,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EINVAL,
    ]
)


def sources_of(images: Iterable[PlannedImage]) -> Iterator[Source | Failure]:
    """Yield a source, or the planned failure, for each image of a piece, in order."""
    for archive, group in groupby(images, key=_archive):
        if archive is not None:
            yield from _members(archive, list(group))
            continue
        for image in group:
            if image.stage is not None:
                yield Failure(image.name, image.stage, image.reason or "")
            elif is_url(image.name):
                read = partial(read_object, parse(image.name), image.size or -1, TEMPORARY)
                yield Source(image.name, image.size, image.modified, read)
            else:
                yield Source(image.name, image.size, image.modified, partial(_read, image.name, *image[1:3]))


def _archive(image: PlannedImage) -> Path | None:
    """The archive that an image is in; None for a file, and for what could not be read."""
    if image.stage is not None:
        return None
    for folder in PurePath(image.name).parents:
        if is_archive(folder.name) and Path(folder).is_file():
            return Path(folder)
    return None


def _members(archive: Path, wanted: list[PlannedImage]) -> Iterator[Source | Failure]:
    """Walk the archive, lazily because the members of a compressed one come with their bytes."""
    position = 0
    for source in members(archive):
        if position == len(wanted):
            return
        if isinstance(source, Source) and source.name == wanted[position].name:
            image = wanted[position]
            is_same = (source.size, signed_64_bits(source.modified)) == (image.size, image.modified)
            yield source if is_same else Failure(image.name, "read", _CHANGED)
            position += 1
    for image in wanted[position:]:
        yield Failure(image.name, "read", f"no longer in {archive}")


def _read(name: str, size: int, modified: int) -> bytes:
    """Read a file, if it is still what was planned."""
    try:
        status = os.stat(name)  # noqa: PTH116 - see images.discover
        if (status.st_size, signed_64_bits(status.st_mtime_ns)) != (size, modified):
            raise ImageError(_CHANGED)
        return read_file(name)
    except OSError as error:
        if error.errno in _FINAL:
            raise
        raise ImageError(f"{TEMPORARY}{one_line(error)}") from None
