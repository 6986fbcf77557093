"""What every store offers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, BinaryIO, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

#: Tries after the first one, and the longest time, seconds, that all tries of one request take.
RETRIES, RETRY_SECONDS = 6, 60
#: Seconds that one request may take.
TIMEOUT = 30


@dataclass(frozen=True, slots=True)
class Entry:
    """What a store says of an object without its content.

    Attributes:
        key: below the store's root.
        size: bytes; -1 where the store does not say.
        modified: nanoseconds since 1970; 0 where the store does not say.
        etag: changes with the content; empty where the store has none.
        is_delimited: whether it is noticed if the content breaks off: not if a server gives no length and no chunks.
    """

    key: str
    size: int
    modified: int
    etag: str
    is_delimited: bool = True


def nanoseconds(moment: datetime) -> int:
    """Return a time as `Entry.modified` has it."""
    return (moment - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1) * 1000


#: Called with what a store says of the object that is being read, before its content; what it raises ends the reading.
Check = Callable[[Entry], object]


class Store(Protocol):
    """An object store or a web server; its methods may be called from any thread.

    Every method raises `NoSuchObjectError`, `DeniedError`, `UnreachableError` or another `StoreError`.

    Attributes:
        root: the URL of its root, without secrets and without a slash at its end.
    """

    root: str

    def get(self, key: str, check: Check | None = None) -> bytes:
        """Return an object's content."""
        ...

    def open(self, key: str, check: Check | None = None) -> AbstractContextManager[BinaryIO]:
        """Open an object to be read from its beginning to its end, without holding all of it."""
        ...

    def head(self, key: str) -> Entry:
        """Return what the store says of an object."""
        ...

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Return the objects whose keys begin with a prefix, in the order of the store, a page at a time.

        Args:
            prefix: any beginning of a key, also within a name; empty for all objects.
            after: only keys behind this one.
        """
        ...

    def put(self, key: str, content: bytes, *, create_only: bool = False) -> bool:
        """Write an object whole.

        Args:
            key: where.
            content: the bytes.
            create_only: leave an object that exists as it is. A store without conditional writes overwrites.

        Returns:
            Whether it was written; False if `create_only` found one.
        """
        ...

    def put_file(self, key: str, file: Path) -> None:
        """Write an object from a file on this machine, in chunks; it appears when all of them are there."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; one that does not exist is no error."""
        ...
