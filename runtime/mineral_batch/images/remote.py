"""Images by URL: found below a prefix or named one by one, read ahead of the decoders.

A prefix is listed a page at a time, in the order of its store: by the bytes of the whole keys.
"""

from __future__ import annotations

import zlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError
from mineral_batch.images.archives import is_archive, refuse_archive
from mineral_batch.images.inventory import inventory_objects, is_inventory
from mineral_batch.images.limits import MAX_BYTES, check_bytes
from mineral_batch.images.lists import NameList
from mineral_batch.images.names import SYSTEM_FOLDERS, has_image_suffix
from mineral_batch.images.parquet import is_parquet, parquet_rows
from mineral_batch.images.seen import SeenNames
from mineral_batch.images.shards import shard_members
from mineral_batch.images.skipped import Skipped
from mineral_batch.images.versions import same_version, version_of
from mineral_batch.storage.errors import DeniedError, NoSuchObjectError, StoreError, UnreachableError
from mineral_batch.storage.interface import Entry
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import Url, is_url, local_path, parse
from mineral_batch.types import Failure, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from pathlib import Path

#: Objects that are read at once, and the bytes that may wait for a decoder: 64 requests of 30 ms give 2,000 images a
#: second (see benchmarks/README.md).
READS_AHEAD = 64
BYTES_AHEAD = 512 * 2**20
# Of an object whose size the server does not say.
_GUESS = 4 * 2**20
_LOOKS_AHEAD = 64
_GZIP = b"\x1f\x8b"  # no image begins so


def find_remote(
    parts: Iterable[NameList | Sequence[str | Path]], skipped: Skipped | None = None
) -> Iterator[Source | Failure]:
    """Find the images at URLs, lazily, each once and in a fixed order.

    A prefix that ends with `/`, or under whose name there is no object, gives the images below it as a folder does;
    an archive or a Parquet file named directly gives its images, the manifest of an S3 Inventory report the images that
    the report lists; any other object is read whatever its name.

    Args:
        parts: URLs, among names on this machine, which are passed over.
        skipped: counts what is below prefixes and in archives and not read.

    Raises:
        DataError: if a URL is not one, a bucket does not exist, or may not be listed.
    """
    # Those that were named one by one are all taken apart before the first is read.
    urls = [part if isinstance(part, NameList) else list(_urls(part)) for part in parts]
    walk = _Walk(skipped if skipped is not None else Skipped())
    each = chain.from_iterable(_urls(one) if isinstance(one, NameList) else one for one in urls)
    for url, found in _looked_at(each):
        yield from walk.images(url, found)


def _urls(names: Iterable[str | Path]) -> Iterator[Url]:
    return (parse(name) for name in names if is_url(name) and local_path(name) is None)


def is_prefix(name: str) -> bool:
    """Return whether a URL is most likely a prefix: not a web address, nor the name of an image or archive."""
    url = parse(name)
    return not url.is_web and not _names_object(url)


def read_object(url: Url, size: int, version: int = 0, passing: str = "") -> bytes:
    """Read one object.

    Args:
        url: of the object.
        size: bytes; -1 if not known.
        version: what `version_of` said when it was listed; 0 if not known.
        passing: how the reason begins of a failure that may not come again.

    Raises:
        ImageError: if it cannot be read, is empty or too large, or has changed since it was listed.
    """
    check = same_version(url, size, version)
    try:
        store = open_store(url)
        if size >= 0:
            check_bytes(size)
            content = store.get(url.key, check)
        else:
            with store.open(url.key, check) as file:
                content = file.read(MAX_BYTES + 1)
    except StoreError as error:
        raise ImageError(f"{passing if isinstance(error, UnreachableError) else ''}{error}") from None
    check_bytes(len(content))
    return _unpacked(content) if content.startswith(_GZIP) else content


def _unpacked(content: bytes) -> bytes:
    """A file that was uploaded with `Content-Encoding: gzip`: stores hand it out as it is; browsers unpack it."""
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = unpack.decompress(content, MAX_BYTES + 1)
    except zlib.error:
        raise ImageError("it is compressed with gzip and damaged") from None
    if not unpack.eof and len(unpacked) <= MAX_BYTES:
        raise ImageError("it is compressed with gzip and incomplete")
    check_bytes(len(unpacked))
    return unpacked


def reader_of(name: str) -> Callable[[], bytes] | None:
    """Return how to read the image that a row's name, a URL, stands for; None for one inside another file."""
    url = parse(name)
    is_inside = any(is_archive(part) or is_parquet(part) for part in url.path.split("/"))
    return None if is_inside else partial(read_object, url, -1)


def read_ahead(
    sources: Iterable[Source | Failure], count: int = READS_AHEAD, most: int = BYTES_AHEAD
) -> Generator[Source | Failure, None, None]:
    """Yield the same sources in the same order, while objects behind them are being read already.

    Sources that are not remote pass as they come. Closing the iterator cancels what has not begun.

    Args:
        sources: any.
        count: objects that are read at once.
        most: bytes of them at once, as far as their sizes are known.
    """
    pool: ThreadPoolExecutor | None = None
    waiting: deque[tuple[Source | Failure, int]] = deque()
    held = 0
    try:
        for source in sources:
            if _is_remote(source):
                pool = pool or ThreadPoolExecutor(count, thread_name_prefix="read")
                assert isinstance(source, Source)
                future: Future[object] = pool.submit(source.read)
                cost = source.size or _GUESS
                waiting.append((replace(source, read=future.result), cost))  # type: ignore[arg-type]
                held += cost
            else:
                waiting.append((source, 0))
            while waiting and (not held or len(waiting) >= count or held > most):
                first, cost = waiting.popleft()
                held -= cost
                yield first
        yield from (source for source, _ in waiting)
    except BaseException:  # GeneratorExit above all: at the end of the sources the last reads are still wanted
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
        raise
    if pool is not None:
        pool.shutdown(wait=False)


def _is_remote(source: Source | Failure) -> bool:
    return isinstance(source, Source) and isinstance(source.read, partial) and source.read.func is read_object


_Found = Entry | StoreError | None


def _looked_at(urls: Iterator[Url]) -> Iterator[tuple[Url, _Found]]:
    """Each URL with what its store says of it, asked for ahead; None where nothing was asked."""
    first = list(islice(urls, 2 * _LOOKS_AHEAD))
    if len(first) <= 1:
        yield from ((url, _look(url)) for url in first)
        return
    with ThreadPoolExecutor(_LOOKS_AHEAD, thread_name_prefix="look") as pool:
        waiting = deque((url, pool.submit(_look, url)) for url in first)
        try:
            while waiting:
                url, future = waiting.popleft()
                waiting.extend((following, pool.submit(_look, following)) for following in islice(urls, 1))
                yield url, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _look(url: Url) -> _Found:
    if not url.key or (url.key.endswith("/") and not url.is_web):
        return None
    try:
        return open_store(url).head(url.key)
    except StoreError as error:
        return error


def _names_object(url: Url) -> bool:
    path = url.path
    return has_image_suffix(path.rpartition("/")[2]) or is_archive(path) or is_parquet(path) or is_inventory(url)


@dataclass
class _Walk:
    """The prefixes walked and the objects named so far.

    Attributes:
        skipped: counts what is not read.
    """

    skipped: Skipped
    _prefixes: set[tuple[str, str]] = field(default_factory=set)
    _named: SeenNames = field(default_factory=SeenNames)
    _folder: str = ""

    def images(self, url: Url, found: _Found) -> Iterator[Source | Failure]:
        if isinstance(found, NoSuchObjectError) and not url.is_web and not _names_object(url):
            found, url = None, replace(url, key=f"{url.key}/")
        if is_inventory(url) and isinstance(found, Entry):
            yield from self._reported(url)
        elif found is None and not url.is_web:
            yield from self._below(url)
        elif not self._is_walked(url) and self._named.add(str(url)):
            yield from _object(url, found, self.skipped)

    def _is_walked(self, url: Url) -> bool:
        return has_image_suffix(url.key.rpartition("/")[2]) and self._is_below(url.root, url.key)

    def _is_below(self, root: str, key: str) -> bool:
        """Whether a key is below a prefix that was walked: all of them end with a slash, or are empty."""
        ends = (at for at, character in enumerate(key, 1) if character == "/")
        return bool(self._prefixes) and any((root, key[:end]) in self._prefixes for end in (0, *ends))

    def _below(self, url: Url) -> Iterator[Source | Failure]:
        if self._is_below(url.root, url.key):
            return
        for entry in open_store(url).list(url.key):
            found = replace(url, key=entry.key)
            if self._is_image(entry.key, url.key) and self._is_new(found):
                yield _source(found, entry)
        self._prefixes.add((url.root, url.key))

    def _reported(self, url: Url) -> Iterator[Source | Failure]:
        for bucket, entry in inventory_objects(url):
            found = Url("s3", f"s3://{bucket}", entry.key)
            if self._is_image(entry.key, "") and self._is_new(found):
                yield _source(found, entry)

    def _is_new(self, url: Url) -> bool:
        return not self._is_below(url.root, url.key) and str(url) not in self._named

    def _is_image(self, key: str, prefix: str) -> bool:
        *folders, name = key[len(prefix) :].split("/")
        system = next((folder for folder in folders if folder.lower() in SYSTEM_FOLDERS), None)
        if system is not None:
            folder = key[: key.index(system, len(prefix)) + len(system)]
            if folder != self._folder:
                self._folder = folder
                self.skipped.add_folder(system)
            return False
        if any(part.startswith(".") and part not in (".", "..") for part in (*folders, name)):
            return False
        if not has_image_suffix(name):
            self.skipped.add_file(PurePosixPath("/dev/null", name))
            return False
        return True


def _object(url: Url, found: _Found, skipped: Skipped) -> Iterator[Source | Failure]:
    name = str(url)
    if isinstance(found, StoreError) and not (isinstance(found, DeniedError) and not url.is_web):
        yield Failure(name, "read", str(found))
    elif reason := refuse_archive(url.path):
        yield Failure(name, "read", reason)
    elif is_archive(url.path) or is_parquet(url.path):
        read: Callable[[Url, str, int], Iterator[Source | Failure]]
        read = partial(shard_members, skip=skipped.add_member) if is_archive(url.path) else parquet_rows
        yield from read(url, name, version_of(found) if isinstance(found, Entry) else 0)
    else:
        # Some may read an object, but not ask for what it is.
        yield _source(url, found if isinstance(found, Entry) else Entry(url.key, -1, 0, ""))


def _source(url: Url, entry: Entry) -> Source:
    version = version_of(entry)
    return Source(str(url), max(entry.size, 0), version, partial(read_object, url, entry.size, version))
