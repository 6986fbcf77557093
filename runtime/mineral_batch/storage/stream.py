"""An object that is read from its beginning to its end, as a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a raw file that cannot be entered in the middle."""

    def __init__(self, chunks: Iterable[bytes], explained: Callable[[Exception], Exception]) -> None:
        self._chunks: Iterator[bytes] = iter(chunks)
        self._explained = explained
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            while not self._rest:
                self._rest = memoryview(next(self._chunks))
        except StopIteration:
            return 0
        except Exception as error:
            raise OSError(str(self._explained(error))) from None
        target = memoryview(buffer)
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Ranges(io.RawIOBase):
    """An object that can be entered anywhere, by requests for ranges of it.

    Args:
        size: of the object, bytes.
        read: called with the first byte and the number of bytes.
    """

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._at = size, read, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte; return its number."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes there were."""
        target = memoryview(buffer)
        count = max(0, min(len(target), self._size - self._at))
        if count:
            target[:count] = self._read(self._at, count)
        self._at += count
        return count


class Stream(io.BufferedReader):
    """A file of what a store sends, in chunks.

    Args:
        chunks: the content.
        explained: makes one line of what goes wrong on the way; it is raised as an `OSError`.
    """

    def __init__(self, chunks: Iterable[bytes], explained: Callable[[Exception], Exception]) -> None:
        super().__init__(_Chunks(chunks, explained), 2**20)
