"""From the names in a plan back to images that can be read, on whichever machine the piece is worked on."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path

from mineral_batch.cluster.parts import PlannedImage
from mineral_batch.errors import ImageError, one_line
from mineral_batch.images.archives import is_archive, signed_64_bits
from mineral_batch.images.discover import find_sources
from mineral_batch.images.limits import read_file
from mineral_batch.images.names import ListedName
from mineral_batch.images.parquet import is_parquet
from mineral_batch.images.remote import read_object
from mineral_batch.storage.errors import may_pass
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
    for container, group in groupby(images, key=_container):
        if container is not None:
            yield from _inside(container, list(group))
            continue
        for image in group:
            if image.stage is not None:
                yield Failure(image.name, image.stage, image.reason or "")
            else:
                yield _source(image)


def is_temporary(failure: Failure) -> bool:
    """Return whether another try may read an image: its piece is then left for later."""
    return failure.stage == "read" and (failure.reason.startswith(TEMPORARY) or may_pass(failure.reason))


def _source(image: PlannedImage) -> Source:
    if is_url(image.name):
        read = partial(read_object, parse(image.name), image.size or -1, image.modified, TEMPORARY)
        return Source(image.name, image.size, image.modified, read)
    return Source(image.name, image.size, image.modified, partial(_read, image.name, image.size, image.modified))


def _container(image: PlannedImage) -> str | None:
    """The archive or Parquet file that an image is in; None for a file, and for what could not be read."""
    if image.stage is not None:
        return None
    parts = image.name.split("/")
    for end in range(1, len(parts)):
        if is_archive(parts[end - 1]) or is_parquet(parts[end - 1]):
            name = "/".join(parts[:end])
            if is_url(name) or Path(name).is_file():
                return name
    return None


def _inside(container: str, wanted: list[PlannedImage]) -> Iterator[Source | Failure]:
    """Walk the file, lazily because members of compressed archives and rows come with their bytes."""
    position, why = 0, ""
    for source in find_sources([ListedName(container)]):
        if position == len(wanted):
            return
        if isinstance(source, Source) and source.name == wanted[position].name:
            image = wanted[position]
            is_same = (source.size, signed_64_bits(source.modified)) == (image.size, image.modified)
            yield source if is_same else Failure(image.name, "read", _CHANGED)
            position += 1
        elif isinstance(source, Failure) and source.path == container:
            why = source.reason  # also one that may pass: the piece is then left
    for image in wanted[position:]:
        yield Failure(image.name, "read", why or f"no longer in {container}")


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
