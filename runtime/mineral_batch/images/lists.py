"""Names of inputs: lists of them in a file, and globs."""

from __future__ import annotations

import codecs
import glob
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError, one_line
from mineral_batch.images.names import ListedName
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import expand_ranges, is_url, local_path, parse, restored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# A dot, a slash or a line end between two single characters, with a zero behind each: text in UTF-16. Split at its
# zeros, a path would become names of one letter, and its slashes the root folder.
_UTF16 = re.compile(rb"(?:\A|\0)[^\0]\0[./\\\n]\0[^\0]\0")


def read_list(file: str | Path) -> list[ListedName]:
    """Read a list of inputs, one per line or separated by NUL bytes; `-` is the standard input.

    UTF-8 and UTF-16 with a byte order mark, which Windows PowerShell writes, are understood; without one, a name is
    any bytes, and UTF-16 is refused: with its zeros as separators each letter would be a name.

    Raises:
        DataError: if it cannot be read or names nothing.
    """
    try:
        content = _read(file)
    except OSError as error:
        raise DataError(f"cannot read the list {file}: {one_line(error)}") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            content = content.decode("utf-16").encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise DataError(f"the list {file} is not whole UTF-16: save it as UTF-8") from None
    content = content.removeprefix(codecs.BOM_UTF8)
    if _UTF16.search(content):
        raise DataError(f"the list {file} is UTF-16 without a byte order mark: save it as UTF-8")
    separator = b"\0" if b"\0" in content else b"\n"
    names = [ListedName(os.fsdecode(line.removesuffix(b"\r"))) for line in content.split(separator) if line.strip()]
    if not names:
        raise DataError(f"the list {file} is empty: it needs one file or folder a line")
    return names


def _read(file: str | Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read()
    if is_url(file) and local_path(file) is None:
        url = parse(file)
        return open_store(url).get(url.key)
    return (local_path(file) or Path(file)).read_bytes()


def is_glob(name: str | Path) -> bool:
    """Return whether a name is a pattern: it has `*`, `?` or `[`, does not exist, and does not come from a list."""
    return (
        not isinstance(name, ListedName)
        and not is_url(name)
        and not os.path.lexists(name)
        and glob.has_magic(str(name))
    )


def expand_glob(pattern: str) -> Iterator[str]:
    """Return what matches a pattern, in no order; folders in it that exist are taken literally, whatever is in a name.

    `**` crosses folders.
    """
    base, rest = _literal_part(pattern)
    escaped = os.path.join(glob.escape(base), rest) if base else rest  # noqa: PTH118 - keeps `./`
    return glob.iglob(escaped, recursive=True)  # noqa: PTH207 - pathlib refuses absolute patterns


def expand(inputs: Iterable[str | Path]) -> Iterator[str | Path]:
    """Return the inputs with each glob replaced by what it matches, sorted; `{000..099}` by its numbers.

    Raises:
        DataError: if a glob matches nothing, or a URL is not one.
    """
    for name in inputs:
        if is_url(name):
            yield from _urls(restored(name), is_listed=isinstance(name, ListedName))
            continue
        if not is_glob(name):
            yield from [name] if isinstance(name, ListedName) else expand_ranges(str(name))
            continue
        matches = sorted(expand_glob(str(name)))
        if not matches:
            raise DataError(f"nothing matches {name} (current folder: {Path.cwd()})")
        yield from matches


def _urls(name: str, *, is_listed: bool) -> Iterator[str | Path]:
    for url in [name] if is_listed else expand_ranges(name):
        if not is_listed and not parse(url).is_web and "*" in url:
            raise DataError(f"patterns are not expanded in URLs: name the prefix, or its objects in a --list ({url})")
        yield local_path(url) or url


def _literal_part(pattern: str) -> tuple[str, str]:
    """Return the longest beginning of a pattern that exists, and the rest."""
    base, rest = "", pattern
    for at, character in enumerate(pattern):
        if character in (os.sep, os.altsep) and at and os.path.lexists(pattern[:at]):
            base, rest = pattern[:at], pattern[at + 1 :]
    return base, rest
