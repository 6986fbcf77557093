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


class Stream(io.BufferedReader):
    """A file of what a store sends, in chunks.

    Args:
        chunks: the content.
        explained: makes one line of what goes wrong on the way; it is raised as an `OSError`.
    """

    def __init__(self, chunks: Iterable[bytes], explained: Callable[[Exception], Exception]) -> None:
        super().__init__(_Chunks(chunks, explained), 2**20)
