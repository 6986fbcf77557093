"""Small copies of the photographs."""

from __future__ import annotations

import io
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from mineral_batch.errors import DataError, ImageError
from mineral_batch.files import is_file
from mineral_batch.images.archives import is_archive
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.discover import find_sources
from mineral_batch.images.limits import MAX_PIXELS, read_file
from mineral_batch.images.remote import reader_of
from mineral_batch.storage.urls import is_url
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from PIL import Image as PILImage

    Read = Callable[[], bytes | PILImage.Image]

Key = TypeVar("Key")

_QUALITY = 80
_PROBED = 20


def thumbnails(
    paths: Sequence[str], base: Path, size: int, threads: int | None = None, *, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, bytes]]:
    """Yield a JPEG, with its index in `paths`, of each image that can be found and read; others are left out.

    Images in archives come after the others.

    Args:
        paths: as in a run's tables.
        base: where relative paths start.
        size: the longest side, pixels.
        threads: that decode; None: one per CPU.
        max_pixels: images with more are left out.
    """
    return _reduced(_readers(paths, base), size, threads, max_pixels)


def small_files(
    files: Iterable[tuple[Key, Path]], size: int, threads: int | None = None
) -> Iterator[tuple[Key, bytes]]:
    """Yield a JPEG of each image file that can be read, with its key and in order; others are left out.

    Args:
        files: with a key each.
        size: the longest side, pixels.
        threads: that decode; None: one per CPU.
    """
    return _reduced(((key, partial(read_file, file)) for key, file in files), size, threads)


def _reduced(
    readers: Iterable[tuple[Key, Read]], size: int, threads: int | None, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Key, bytes]]:
    def work(item: tuple[Key, Read]) -> tuple[Key, bytes | None]:
        key, read = item
        return key, _thumbnail(read, size, max_pixels)

    for key, content in bounded_map(work, readers, threads or cpu_count(), "thumbnail"):
        if content is not None:
            yield key, content


def _thumbnail(read: Read, size: int, max_pixels: int) -> bytes | None:
    """Make one JPEG; None if the image is gone or can no longer be read."""
    try:
        content = read()
        if isinstance(content, bytes):  # a damaged one, if it was predicted
            image = open_rgb(content, target=(size, size), keep_damaged=True, max_pixels=max_pixels)
        else:
            image = content.convert("RGB")
    except (OSError, ImageError):
        return None
    image.thumbnail((size, size))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()


def _readers(paths: Sequence[str], base: Path) -> Iterator[tuple[int, Read]]:
    """Find how to read each image that is there, members of archives last."""
    members: dict[Path, dict[str, int]] = {}
    for index, path in enumerate(paths):
        if is_url(path):
            if (remote := reader_of(path)) is not None:
                yield index, remote
            continue
        file = base / path
        if is_file(file):
            yield index, partial(read_file, file)
        elif archive := _archive(file):
            members.setdefault(archive, {})[str(file)] = index
    for archive, names in members.items():
        yield from _members(archive, names)


def _archive(file: Path) -> Path | None:
    """Return the archive that a path leads into, if any."""
    return next((folder for folder in file.parents if is_archive(folder.name) and is_file(folder)), None)


def _members(archive: Path, names: dict[str, int]) -> Iterator[tuple[int, Read]]:
    try:
        for source in find_sources([archive]):
            if isinstance(source, Source) and source.name in names:
                yield names[source.name], source.read
    except DataError:  # the archive is gone
        return


def find_base(paths: Iterable[str], candidates: Sequence[Path]) -> Path:
    """Return the first candidate from which one of the first relative paths leads to a file; else the first of all."""
    probed = list(islice(paths, _PROBED))
    for base in candidates:
        if any(is_file(base / path) or _archive(base / path) for path in probed):
            return base
    return candidates[0]
