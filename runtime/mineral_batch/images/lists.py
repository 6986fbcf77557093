"""Lists of inputs (`--list`): names in a file, read as they are needed, so that there may be fifty million of them."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import os
import re
import stat
import sys
import tempfile
import threading
import weakref
import zlib
from contextlib import ExitStack
from copy import copy
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mineral_batch.errors import DataError, one_line
from mineral_batch.files import write_errors
from mineral_batch.images.names import ListedName
from mineral_batch.storage.download import download
from mineral_batch.storage.urls import is_url, local_path, parse, redact, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A dot, a slash or a line end between two single characters, with a zero behind each: text in UTF-16. Split at its
# zeros, a path would become names of one letter, and its slashes the root folder.
_UTF16 = rb"[^\0]\0[./\\\n]\0[^\0]\0"
_UTF16_FIRST, _UTF16_LATER = re.compile(rb"(?:\A|\0)" + _UTF16), re.compile(rb"\0" + _UTF16)
_OVERLAP = 6
_BLOCK = 2**20
_GZIP = b"\x1f\x8b"
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# From this size on, bytes, a list on disk is not copied.
_LARGE = 64 * 2**20
_COPY, _MAKE_ROOM = "a temporary copy of the list", "free some space, or set TMPDIR to another folder"


class NameList:
    """The names in a list, which may be gone through many times, also by several threads; none is held in memory.

    Args:
        content: of the list.

    Attributes:
        sha256: of the content, in hexadecimal.
    """

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._left_out: frozenset[str] = frozenset()
        self._separator, self.sha256 = content.survey()

    def without(self, names: frozenset[str]) -> NameList:
        """Return the same list, in which some names are passed over."""
        other = copy(self)
        other._left_out = names
        return other

    def first(self, count: int) -> list[ListedName]:
        """Return the first names."""
        return list(islice(self, count))

    def count(self) -> int:
        """Return how many names there are; reads the whole list."""
        return sum(1 for _ in (self if self._left_out else self._lines()))

    def __iter__(self) -> Iterator[ListedName]:
        for line in self._lines():
            name = ListedName(os.fsdecode(line.removesuffix(b"\r")))
            if name not in self._left_out:
                yield name

    def _lines(self) -> Iterator[bytes]:
        return (line for line in self._content.split(self._separator) if line.strip())


class _Content:
    """The bytes of a list, read from a file that stays as it is: that is checked.

    Args:
        source: how the list is called in messages.
        file: closed when nobody needs it any more.
    """

    def __init__(self, source: str, file: BinaryIO) -> None:
        self._source, self._file, self._lock = source, file, threading.Lock()
        weakref.finalize(self, file.close)
        file.flush()
        self._version = self._status()
        self._start = len(codecs.BOM_UTF8) if self._read(0, 3) == codecs.BOM_UTF8 else 0

    def split(self, separator: bytes) -> Iterator[bytes]:
        rest = b""
        for block in self._blocks():
            *lines, rest = (rest + block).split(separator)
            yield from lines
            if len(rest) > _BLOCK:
                raise DataError(f"the list {self._source} has a line of over {_BLOCK:,} bytes: not a list of names")
        yield rest

    def survey(self) -> tuple[bytes, str]:
        """Return what separates the names, and the SHA-256 of all bytes."""
        separator, digest, last, pattern = b"\n", hashlib.sha256(), b"", _UTF16_FIRST
        for block in self._blocks():
            if b"\0" in block:
                separator = b"\0"
                if pattern.search(last + block):
                    raise DataError(f"the list {self._source} is UTF-16 without a byte order mark: save it as UTF-8")
            digest.update(block)
            last, pattern = block[-_OVERLAP:], _UTF16_LATER
        return separator, digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        at = self._start
        while block := self._read(at, _BLOCK):
            yield block
            at += len(block)
        # Half an old and half a new list would be two wrong ones.
        if self._status() != self._version:
            raise DataError(f"the list {self._source} has changed while it was read: rerun the command")

    def _read(self, at: int, size: int) -> bytes:
        try:
            with self._lock:
                self._file.seek(at)
                return self._file.read(size)
        except OSError as error:
            raise DataError(f"cannot read the list {self._source}: {one_line(error)}") from None

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def read_list(file: str | Path) -> NameList:
    """Open a list of inputs, one per line or separated by NUL bytes; `-` is the standard input.

    UTF-8 and UTF-16 with a byte order mark, which Windows PowerShell writes, are understood; without one, a name is
    any bytes, and UTF-16 is refused: with its zeros as separators each letter would be a name. It may be compressed
    with gzip. What is not a large file on this machine is copied to a temporary file first.

    Raises:
        DataError: if it cannot be read whole or names nothing.
    """
    source = redact(restored(file)) if is_url(file) else str(file)
    try:
        names = NameList(_Content(source, _plain(_opened(file))))
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"the list {source} is damaged: its gzip stream is incomplete") from None
    except UnicodeDecodeError:
        raise DataError(f"the list {source} is incomplete UTF-16: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read the list {source}: {one_line(error)}") from None
    if not names.first(1):
        raise DataError(f"the list {source} is empty: it needs one file or folder a line")
    return names


def _opened(file: str | Path) -> BinaryIO:
    """The list as a file that can be read more than once."""
    if str(file) == "-":
        return _copied(sys.stdin.buffer.read)
    path = local_path(file) if is_url(file) else Path(file)
    if path is None:
        with ExitStack() as stack, write_errors(_COPY, fix=_MAKE_ROOM):
            copied = stack.enter_context(_temporary())
            download(parse(file), copied)
            stack.pop_all()
        return copied
    opened = path.open("rb")
    status = os.fstat(opened.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size > _LARGE:
        return opened
    with opened:  # a pipe, or so small that it may as well be edited while the run goes on
        return _copied(opened.read)


def _plain(file: BinaryIO) -> BinaryIO:
    """The list as bytes that only need to be split."""
    file.seek(0)
    head = file.read(2)
    file.seek(0)
    if head == _GZIP:
        with file, gzip.GzipFile(fileobj=file) as unpacked:
            return _plain(_copied(unpacked.read))
    if head not in _UTF16_MARKS:
        return file
    decoder = codecs.getincrementaldecoder("utf-16")()

    def transcoded(size: int) -> bytes:
        block = file.read(size)
        return decoder.decode(block, final=not block).encode("utf-8", "surrogatepass")

    with file:
        return _copied(transcoded)


def _copied(read: Callable[[int], bytes]) -> BinaryIO:
    with ExitStack() as stack:
        copied = stack.enter_context(_temporary())
        while block := read(_BLOCK):
            with write_errors(_COPY, fix=_MAKE_ROOM):
                copied.write(block)
        stack.pop_all()  # it stays open
    return copied


def _temporary() -> BinaryIO:
    with write_errors(_COPY, fix=_MAKE_ROOM):
        return cast("BinaryIO", tempfile.TemporaryFile())
