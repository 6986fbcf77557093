"""The inputs of a run: mistakes are found before a model is opened, and inputs that vanish are noticed."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.images.archives import is_archive
from mineral_batch.images.discover import NOT_THERE, find_sources
from mineral_batch.images.expand import expand, expand_glob, is_glob
from mineral_batch.images.lists import NameList
from mineral_batch.images.names import ListedName, formula_safe, has_image_suffix
from mineral_batch.images.remote import is_prefix
from mineral_batch.images.skipped import Skipped
from mineral_batch.results.csv import listed
from mineral_batch.storage.errors import StoreError
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import Url, expand_ranges, is_url, local_path, parse, redact, restored, without_secrets
from mineral_batch.types import Failure, Source

# What a list of names may be called; no image is.
_LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv")
#: Of the inputs named, so many are in run.json.
INPUTS_IN_MANIFEST = 100
# A list whose first names are all missing is one of another folder or machine.
_MOST_MISSING = 100_000


@dataclass(frozen=True)
class Inputs:
    """The inputs named by a user.

    Attributes:
        named: all of them, as they were named.
        existing: those that exist, or are globs that match something.
        missing: the names that do not exist, also of lists.
        empty: the existing folders and archives without any image.
        skipped: counts what is in the folders and not read, as `sources` goes through them.
    """

    named: tuple[str | NameList, ...]
    existing: tuple[str | NameList, ...]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def first_named(self, count: int) -> list[str]:
        """Return the first names, those of lists among them, without what is secret."""
        return without_secrets(islice(expand_lists(self.named), count))

    def count_named(self) -> int:
        """Return how many names there are, those of lists among them."""
        return sum(one.count() if isinstance(one, NameList) else 1 for one in self.named)

    def digest(self) -> str:
        """Return what changes with any of the names: a SHA-256 in hexadecimal. Where a list lies does not matter."""
        parts = [f"list {one.sha256}" if isinstance(one, NameList) else redact(one) for one in self.named]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def sources(self) -> Iterator[Source | Failure]:
        """Yield the images under the inputs, after a failure for each missing input."""
        for name in self.missing:
            yield Failure(formula_safe(name), "read", NOT_THERE)
        yield from find_sources(self.existing, self.skipped)

    def warnings(self) -> list[str]:
        """Return a line for the inputs that are missing, and one for those without images."""
        lines = []
        if self.missing:
            lines.append(f"{NOT_THERE}: {listed(self.missing)}")
        if self.empty:
            lines.append(f"no images in {listed(without_secrets(self.empty))}: is the drive mounted?")
        return lines


def expand_lists(named: Iterable[str | NameList]) -> Iterator[str]:
    """Return the names with those of lists in place of the lists."""
    return chain.from_iterable(one if isinstance(one, NameList) else [one] for one in named)


def check_inputs(named: Sequence[str | Path | NameList]) -> Inputs:
    """Look at each input before anything is opened.

    Raises:
        DataError: if none of them exists or none holds an image, or one is a list of names.
    """
    names = tuple(one if isinstance(one, NameList | ListedName) else restored(one) for one in named)
    there, missing, empty = 0, dict[str, None](), list[str]()
    for name in expand_lists(names):
        if not _exists(name):
            missing[name] = None
            if there or len(missing) < _MOST_MISSING:
                continue
            break
        there += 1
        _refuse_list(name)
        if _may_be_empty(name) and next(find_sources([name]), None) is None:
            empty.append(name)
    if not there:
        raise DataError(f"{NOT_THERE}: {listed(tuple(missing))} (current folder: {Path.cwd()})")
    if len(empty) == there:
        why = "its name ends with a space" if empty[0] != empty[0].rstrip() else "no file has the suffix of an image"
        raise DataError(f"no images in {listed(without_secrets(empty))}: {why}")
    gone = frozenset(missing)
    existing = (one.without(gone) if isinstance(one, NameList) else one for one in names if one not in gone)
    return Inputs(names, tuple(existing), tuple(missing), tuple(empty))


def _exists(name: str) -> bool:
    if is_url(name):
        return _is_url_there(name)
    if os.path.lexists(name) or (not isinstance(name, ListedName) and any(map(os.path.lexists, expand_ranges(name)))):
        return True
    return is_glob(name) and next(expand_glob(name), None) is not None


def _is_url_there(name: str) -> bool:
    """Whether a file is; of other URLs it shows when they are read."""
    path = local_path(name)
    if path is not None:
        return path.exists()
    if isinstance(name, ListedName):
        parse(name)
    else:
        next(expand([name]))
    return True


def _is_listed_object(name: str) -> bool:
    """Whether a line of a list is the URL of one object, by its form: there may be tens of millions."""
    return isinstance(name, ListedName) and "://" in name and name[-1] != "/" and not name.startswith("file:")


def _refuse_list(name: str) -> None:
    if name.lower().endswith(_LIST_SUFFIXES) and Path(name).is_file():
        raise DataError(f"{name} is not an image: if it lists images, one per line, give it as --list {name}")


def _may_be_empty(name: str) -> bool:
    """A folder or an archive whose directory can be read without unpacking it."""
    if _is_listed_object(name):  # a request for each name without a suffix would take hours
        return False
    if is_url(name) and local_path(name) is None:
        return is_prefix(name)
    if isinstance(name, ListedName) and has_image_suffix(os.path.basename(name)):  # noqa: PTH119 - of each of millions
        return False
    path = local_path(name) or Path(name)
    return path.is_dir() or (path.suffix.lower() in (".zip", ".tar") and path.is_file())


class InputRoots:
    """The folders and archives that a run reads from: tells an unreadable file from a drive that is gone.

    Args:
        inputs: as they were named; they exist.
    """

    def __init__(self, inputs: Iterable[str | NameList]) -> None:
        self._devices: dict[str, int] = {}
        self._prefixes: list[Url] = []
        for name in expand_lists(inputs):
            if _is_listed_object(name):
                continue
            if not is_url(name) or local_path(name) is not None:
                self._add(_root(name))
            elif _may_be_empty(name):
                self._prefixes.append(parse(name))

    def _add(self, root: str) -> None:
        if root not in self._devices:
            with suppress(OSError):
                self._devices[root] = Path(root).stat().st_dev

    def require(self, failure: Failure, journal: Path) -> None:
        """Check that the folder or archive of an image that could not be read is still there.

        Raises:
            DataError: if it is gone.
        """
        if is_url(failure.path):
            self._require_store(failure, journal)
            return
        path = Path(failure.path)
        for root in (path, *path.parents):
            device = self._devices.get(str(root))
            if device is not None and not _is_on(root, device):
                raise DataError(
                    f"{root} is no longer there; the results so far are saved in {journal}: "
                    f"bring it back and rerun the same command to resume"
                )

    def _require_store(self, failure: Failure, journal: Path) -> None:
        """Ask a prefix that was listed whether it can still be; an object may be gone alone, a bucket is not."""
        url = parse(failure.path)
        if "credentials have expired" not in failure.reason:
            if not any(url.root == prefix.root and url.key.startswith(prefix.key) for prefix in self._prefixes):
                return
            try:
                next(open_store(url).list(url.key.rpartition("/")[0]), None)
            except StoreError as error:
                reason = str(error)
            else:
                return
        else:
            reason = failure.reason
        raise DataError(f"{reason}; the results so far are saved in {journal}: rerun the same command to resume")


def _root(name: str) -> str:
    """The folder or archive behind an input; of a file or a glob, the folder that it is in."""
    if isinstance(name, ListedName) and has_image_suffix(os.path.basename(name)) and not is_url(name):  # noqa: PTH119
        return str(Path(os.path.dirname(name)))  # noqa: PTH120 - of each of millions
    given = local_path(name) or Path(name)
    while glob.has_magic(str(given)) and not given.exists():
        given = given.parent
    return str(given if is_archive(given.name) or given.is_dir() else given.parent)


def _is_on(root: Path, device: int) -> bool:
    """False where a drive was taken out, also where its empty mount point has stayed."""
    try:
        return root.stat().st_dev == device
    except OSError:
        return False
