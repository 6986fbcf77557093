"""The user's copies of what was named by URL: where they are, how much room they take, and which are removed.

A copy lies in a folder of its own, two levels below `copies_folder()`. The time of change of that folder is when the
copy was last used, and a lock on it says that a process uses it now.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.files import cache_folder

#: The environment variable with the most GiB that copies may take together.
LIMIT = "MINERAL_BATCH_CACHE_GIB"
_DEFAULT_GIB = 20.0
# A copy used since then stays: its user may be a machine whose locks are not seen here.
_RECENT_SECONDS = 24 * 3600
# Descriptors of the folders that this process uses; the locks end with it.
_held: dict[Path, int] = {}


def copies_folder() -> Path:
    """Return the folder of all copies; it need not exist."""
    return cache_folder() / "files"


def limit() -> int:
    """Return the most bytes that copies may take together.

    Raises:
        DataError: if the environment variable is no number of GiB.
    """
    text = os.environ.get(LIMIT, "").strip()
    try:
        gib = float(text) if text else _DEFAULT_GIB
    except ValueError:
        gib = -1.0
    if not 0 <= gib < 2**33:
        raise DataError(f"{LIMIT} is '{text}': it must be a number of GiB, such as {_DEFAULT_GIB:g}")
    return int(gib * 2**30)


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder; a file with several names counts once."""
    return sum({(status.st_dev, status.st_ino): status.st_size for status in _files(folder)}.values())


def hold(folder: Path) -> None:
    """Make a copy's folder, note that it is used now, and keep it from being removed until this process ends.

    Where the cache cannot be written, nothing is noted.
    """
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
    if folder not in _held or not _is_same(folder, _held[folder]):
        _release(folder)
        _lock(folder)


def _lock(folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows; there a file that is open cannot be removed
        return
    with suppress(OSError):
        while True:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if _is_same(folder, descriptor):
                _held[folder] = descriptor
                return
            os.close(descriptor)  # removed while this process waited
            folder.mkdir(parents=True, exist_ok=True)


def _release(folder: Path) -> None:
    with suppress(KeyError, OSError):
        os.close(_held.pop(folder))


def _is_same(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(folder.stat(), os.fstat(descriptor))
    except OSError:
        return False


def prune() -> int:
    """Remove the copies that were not used for longest until the rest is within the limit; return the bytes freed.

    What a process uses now, or used in the last day, stays.

    Raises:
        DataError: as `limit` does.
    """
    most, before = limit(), size(copies_folder())
    now = before
    for folder in sorted(copies_folder().glob("*/*/"), key=_last_used) if now > most else ():
        if now <= most or time.time() - _last_used(folder) < _RECENT_SECONDS:
            break
        with _alone(folder) as is_alone:
            if is_alone:
                now -= sum(status.st_size for status in _files(folder) if status.st_nlink == 1)
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # if it was the last of its URL
    return before - now


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody uses a copy; nobody begins to while the block runs."""
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # another process removed it
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _last_used(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def _files(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield Path(parent, name).lstat()
