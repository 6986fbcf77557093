"""From the inputs that a user names to single names: globs, ranges of shards, lists."""

from __future__ import annotations

import glob
import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.images.lists import NameList
from mineral_batch.images.names import ListedName
from mineral_batch.storage.urls import expand_ranges, is_url, local_path, parse, restored

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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


def expand(inputs: Iterable[str | Path | NameList]) -> Iterator[str | Path]:
    """Return each input, or what it stands for: a glob's matches, sorted; the numbers of `{000..099}`; a list's names.

    Raises:
        DataError: if a glob matches nothing, or a URL is not one.
    """
    return chain.from_iterable(_expanded(one) for one in inputs)


def expand_once(inputs: Iterable[str | Path | NameList]) -> list[NameList | list[str | Path]]:
    """Return the same in parts that can be gone through many times, while folders change; lists are not read yet.

    Raises:
        DataError: as `expand` does.
    """
    return [one if isinstance(one, NameList) else list(_expanded(one)) for one in inputs]


def _expanded(one: str | Path | NameList) -> Iterable[str | Path]:
    if isinstance(one, NameList):
        return one
    if is_url(one):
        return _urls(restored(one), is_listed=isinstance(one, ListedName))
    if not is_glob(one):
        return [one] if isinstance(one, ListedName) else expand_ranges(str(one))
    matches = sorted(expand_glob(str(one)))
    if not matches:
        raise DataError(f"nothing matches {one} (current folder: {Path.cwd()})")
    return matches


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
