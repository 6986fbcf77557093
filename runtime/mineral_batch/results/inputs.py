"""The inputs of a run: mistakes are found before a model is opened, and inputs that vanish are noticed."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.images.archives import is_archive
from mineral_batch.images.discover import find_sources
from mineral_batch.images.lists import expand, expand_glob, is_glob
from mineral_batch.images.names import ListedName, formula_safe
from mineral_batch.images.remote import is_prefix
from mineral_batch.images.skipped import Skipped
from mineral_batch.results.csv import listed
from mineral_batch.storage.errors import StoreError
from mineral_batch.storage.store import open_store
from mineral_batch.storage.urls import expand_ranges, is_url, local_path, parse, restored, without_secrets
from mineral_batch.types import Failure, Source

# What a list of names may be called; no image is.
_LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv")


@dataclass(frozen=True)
class Inputs:
    """The inputs named by a user.

    Attributes:
        named: all of them, as they were named.
        existing: those that exist, or are globs that match something.
        missing: the others.
        empty: the existing folders and archives without any image.
        skipped: counts what is in the folders and not read, as `sources` goes through them.
    """

    named: tuple[str, ...]
    existing: tuple[str, ...]
    missing: tuple[str, ...]
    empty: tuple[str, ...]
    skipped: Skipped = field(default_factory=Skipped, compare=False)

    def sources(self) -> Iterator[Source | Failure]:
        """Yield the images under the inputs, after a failure for each missing input."""
        for name in self.missing:
            yield Failure(formula_safe(name), "read", "no such file or folder")
        yield from find_sources(self.existing, self.skipped)

    def warnings(self) -> list[str]:
        """Return a line for the inputs that are missing, and one for those without images."""
        lines = []
        if self.missing:
            lines.append(f"no such file or folder: {listed(self.missing)}")
        if self.empty:
            lines.append(f"no images in {listed(without_secrets(self.empty))}: is the drive mounted?")
        return lines


def check_inputs(named: Sequence[str | Path]) -> Inputs:
    """Look at each input before anything is opened.

    Raises:
        DataError: if none of them exists or none holds an image, or one is a list of names.
    """
    names = tuple(name if isinstance(name, ListedName) else restored(name) for name in named)
    missing = tuple(name for name in names if not _exists(name))
    existing = tuple(name for name in names if name not in set(missing))
    if not existing:
        raise DataError(f"no such file or folder: {listed(missing)} (current folder: {Path.cwd()})")
    for name in existing:
        _refuse_list(name)
    empty = tuple(name for name in existing if _may_be_empty(name) and next(find_sources([name]), None) is None)
    if empty and len(empty) == len(existing):
        raise DataError(f"no images in {listed(without_secrets(empty))}: no file has the suffix of an image")
    return Inputs(names, existing, missing, empty)


def _exists(name: str) -> bool:
    if is_url(name):
        return _is_url_there(name)
    if os.path.lexists(name) or any(map(os.path.lexists, expand_ranges(name))):
        return True
    return is_glob(name) and next(expand_glob(name), None) is not None


def _is_url_there(name: str) -> bool:
    """Whether a file is; of other URLs it shows when they are read."""
    path = local_path(name)
    if path is not None:
        return path.exists()
    next(expand([name]))
    return True


def _refuse_list(name: str) -> None:
    path = Path(name)
    if path.suffix.lower() in _LIST_SUFFIXES and path.is_file():
        raise DataError(f"{name} is not an image: if it lists images, one per line, give it as --list {name}")


def _may_be_empty(name: str) -> bool:
    """A folder or an archive whose directory can be read without unpacking it."""
    if is_url(name) and local_path(name) is None:
        return is_prefix(name)
    path = local_path(name) or Path(name)
    return path.is_dir() or (path.suffix.lower() in (".zip", ".tar") and path.is_file())


class InputRoots:
    """The folders and archives that a run reads from: tells an unreadable file from a drive that is gone.

    Args:
        inputs: as they were named; they exist.
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self._devices: dict[str, int] = {}
        self._urls: list[str] = []
        for name in inputs:
            if is_url(name) and local_path(name) is None:
                self._urls.append(name)
                continue
            root = _root(Path(name))
            with suppress(OSError):
                self._devices.setdefault(str(root), root.stat().st_dev)

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
        prefixes = [parse(name) for name in self._urls if is_prefix(name)]
        if "credentials have expired" not in failure.reason:
            if not any(url.root == prefix.root and url.key.startswith(prefix.key) for prefix in prefixes):
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


def _root(given: Path) -> Path:
    """The folder or archive behind an input; of a file or a glob, the folder that it is in."""
    while glob.has_magic(str(given)) and not given.exists():
        given = given.parent
    return given if is_archive(given.name) or given.is_dir() else given.parent


def _is_on(root: Path, device: int) -> bool:
    """False where a drive was taken out, also where its empty mount point has stayed."""
    try:
        return root.stat().st_dev == device
    except OSError:
        return False
