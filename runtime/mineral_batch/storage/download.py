"""Downloads: a copy is whole, or there is none."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from mineral_batch.storage.errors import StoreError, UnreachableError
from mineral_batch.storage.store import open_store

if TYPE_CHECKING:
    from mineral_batch.storage.interface import Entry
    from mineral_batch.storage.urls import Url

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_BLOCK = 2**20


def download(url: Url, file: BinaryIO, expected: Entry | None = None) -> str:
    """Copy an object into an open file, a block at a time, and return the SHA-256 of its content, in hexadecimal.

    Its size must be what the store says and, where the ETag is one, its MD5 too.

    Args:
        url: of the object.
        file: written from where it stands.
        expected: what the store said of the object before; None if nobody asked.

    Raises:
        StoreError: if the object cannot be read, is no longer the expected one, or did not arrive whole; also if a
            server gives no length, because a file that breaks off would look complete.
        OSError: if the file cannot be written.
    """
    stated = [] if expected is None else [expected]

    def check(now: Entry) -> None:
        if expected is not None and expected.etag and now.etag not in ("", expected.etag):
            raise StoreError(f"{url} has changed while it was read: try again")
        if not now.is_delimited:
            raise StoreError(
                f"{url}: the server gives no length, so a file that breaks off would look complete: download it, and "
                f"name the copy"
            )
        stated.append(now)

    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with open_store(url).open(url.key, check) as body:
        for block in _blocks(body):
            sha256.update(block)
            md5.update(block)
            size += file.write(block)
    for entry in stated:
        digest = _MD5.fullmatch(entry.etag) if url.scheme == "s3" else None
        if entry.size not in (-1, size) or (digest and digest[1] != md5.hexdigest()):
            raise StoreError(f"{url} was damaged in transit: try again")
    return sha256.hexdigest()


def _blocks(body: BinaryIO) -> Iterator[bytes]:
    """What comes of an object; that no more comes is the store's fault, not an `OSError` of the disk's."""
    while True:
        try:
            block = body.read(_BLOCK)
        except OSError as error:
            raise UnreachableError(str(error)) from None
        if not block:
            return
        yield block
