"""Small copies of the photographs, made by threads, as many at a time as fit into little memory."""

from __future__ import annotations

import io
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mineral_batch.errors import DataError, ImageError
from mineral_batch.images.archives import is_archive
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.discover import find_sources
from mineral_batch.images.limits import read_file
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from PIL import Image as PILImage

    Read = Callable[[], bytes | PILImage.Image]

Key = TypeVar("Key")

_QUALITY = 80
_WAITING_PER_THREAD = 4
_PROBED = 20


def thumbnails(paths: Sequence[str], base: Path, size: int, threads: int | None = None) -> Iterator[tuple[int, bytes]]:
    """JPEGs of the pictures that can be found and read, each with its index in `paths`; others are left out.

    They come in no promised order: pictures in archives come behind the others.

    Args:
        paths: as a run's tables name them.
        base: where relative paths start.
        size: the longest side, pixels.
        threads: that decode; None: one per processor.
    """
    return _small(_readers(paths, base), size, threads)


def small_files(
    files: Iterable[tuple[Key, Path]], size: int, threads: int | None = None
) -> Iterator[tuple[Key, bytes]]:
    """JPEGs of the picture files that can be read, each with its key and in their order; others are left out.

    Args:
        files: with a key each.
        size: the longest side, pixels.
        threads: that decode; None: one per processor.
    """
    return _small(((key, partial(read_file, file)) for key, file in files), size, threads)


def _small(readers: Iterable[tuple[Key, Read]], size: int, threads: int | None) -> Iterator[tuple[Key, bytes]]:
    workers = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(workers, thread_name_prefix="thumbnail") as pool:
        waiting: deque[tuple[Key, Future[bytes | None]]] = deque()
        for key, read in readers:
            waiting.append((key, pool.submit(_thumbnail, read, size)))
            if len(waiting) >= workers * _WAITING_PER_THREAD:
                yield from _made(waiting.popleft())
        while waiting:
            yield from _made(waiting.popleft())


def _made(job: tuple[Key, Future[bytes | None]]) -> Iterator[tuple[Key, bytes]]:
    key, future = job
    content = future.result()
    if content is not None:
        yield key, content


def _thumbnail(read: Read, size: int) -> bytes | None:
    """One JPEG; None if the picture has gone or changed into something that cannot be read."""
    try:
        content = read()
        picture = open_rgb(content, target=(size, size)) if isinstance(content, bytes) else content.convert("RGB")
    except (OSError, ImageError):
        return None
    picture.thumbnail((size, size))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()


def _readers(paths: Sequence[str], base: Path) -> Iterator[tuple[int, Read]]:
    """How each picture that is there is read, members of archives last."""
    members: dict[Path, dict[str, int]] = {}
    for index, path in enumerate(paths):
        file = base / path
        if file.is_file():
            yield index, partial(read_file, file)
        elif archive := _archive(file):
            members.setdefault(archive, {})[str(file)] = index
    for archive, wanted in members.items():
        yield from _members(archive, wanted)


def _archive(file: Path) -> Path | None:
    """The archive that a path leads into, if any."""
    return next((folder for folder in file.parents if is_archive(folder.name) and folder.is_file()), None)


def _members(archive: Path, wanted: dict[str, int]) -> Iterator[tuple[int, Read]]:
    try:
        for found in find_sources([archive]):
            if isinstance(found, Source) and found.name in wanted:
                yield wanted[found.name], found.read
    except DataError:  # the archive went away
        return


def find_base(paths: Iterable[str], candidates: Sequence[Path]) -> Path:
    """The first candidate from which some of the first relative paths lead to a file; else the first of all."""
    probed = [path for _, path in zip(range(_PROBED), paths, strict=False)]
    for base in candidates:
        if any((base / path).is_file() or _archive(base / path) for path in probed):
            return base
    return candidates[0]
