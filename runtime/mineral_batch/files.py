"""Files and folders that appear whole or not at all, and one line for what the system refuses to write."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mineral_batch.errors import DataError

_MAKE_ROOM = "free some space"
_LONGEST = 240  # bytes of a name, of 255, so that a temporary file can be named after it
_FIXES = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EFBIG: "raise the limit on the size of files, or choose another place",
    errno.ENOENT: "create the folder first, or choose another place",
    errno.ENOTDIR: "part of the path is a file; choose another place",
    errno.EISDIR: "this is a folder; name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def cache_folder() -> Path:
    """The user's folder for what the program can make or fetch again; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mineral-batch"


def is_file(path: str | Path) -> bool:
    """Whether a path out of a table is a file: no where the system cannot even look, where `Path.is_file` raises.

    A name can be too long, or lead into a folder that may not be entered.
    """
    return os.path.isfile(path)  # noqa: PTH113


def cannot_write(target: str | Path, error: OSError, *, fix: str = "") -> DataError:
    """One line for a file or folder that cannot be written: what, why, how to fix it.

    Args:
        target: what the user named, not the temporary file beside it.
        error: as the system raised it.
        fix: what to do; by default what suits the error.
    """
    fix = fix or _FIXES.get(error.errno or 0, "choose a place that you may write to")
    return DataError(f"cannot write {target}: {error.strerror or error}; {fix}")


@contextmanager
def write_errors(target: str | Path, *, fix: str = "") -> Iterator[None]:
    """Turn an `OSError` of the block into the `DataError` of `cannot_write`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(target, error, fix=fix) from None


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` when the block ends well, and vanishes when it does not.

    It lies in the folder of `path`, because a rename is atomic only within one file system. A symbolic link stays a
    link: the file it points to is replaced. An existing file keeps its permissions.

    Raises:
        OSError: as opening, writing or renaming do; `write_errors` makes one line of it.
    """
    target = Path(os.path.realpath(path))  # Path.resolve raises a RuntimeError for links in a loop
    temporary = _temporary(target)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)  # after closing: Windows cannot rename an open file
    finally:
        with suppress(OSError):  # must not hide the error that ended the block
            temporary.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes, *, fix: str = "") -> None:
    """Write a whole file atomically; text as UTF-8, in which names of files that are not UTF-8 keep their bytes.

    Raises:
        DataError: if the file cannot be written; a file that was there is untouched.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    with write_errors(path, fix=fix), atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Create a folder that becomes `path` when the block ends well, and vanishes when it does not.

    A folder of that name is replaced, so the caller checks first that it may be. `remove_leftovers` restores the old
    one if the process is killed between the two renames.

    Raises:
        OSError: as creating, writing or renaming do.
    """
    target = Path(path)
    temporary, old = _temporary(target), _old(target)
    temporary.mkdir()
    try:
        yield temporary
        if target.exists():
            target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(path: str | Path) -> None:
    """Remove what a killed process left of `atomic_file` or `atomic_folder`; the caller holds the lock on the folder.

    Raises:
        OSError: if the folder cannot be written.
    """
    target = Path(path)
    for stale in target.parent.glob(f".{glob.escape(_stem(target))}.*.part"):
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)
    old = _old(target)
    if old.exists() and not target.exists():  # killed between the two renames
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _temporary(target: Path) -> Path:
    return target.with_name(f".{_stem(target)}.{secrets.token_hex(4)}.part")


def _old(target: Path) -> Path:
    return target.with_name(f".{_stem(target)}.old")


def _stem(target: Path) -> str:
    """The file's name, or a digest of one that leaves no room for more."""
    name = os.fsencode(target.name)
    return target.name if len(name) <= _LONGEST else hashlib.sha256(name).hexdigest()[:32]


@contextmanager
def staging_folder(parent: Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder in another one, removed when the block ends.

    Of a process that was killed the folder stays until the next one comes; its name says whose it is.

    Args:
        parent: where the finished files go, so that they can be renamed.
        kind: a word for the folder's name.
    """
    prefix = f".{kind}-{re.sub('[^A-Za-z0-9]', '', platform.node())}-"
    with suppress(OSError):
        for stale in parent.glob(f"{prefix}*"):
            process = stale.name.removeprefix(prefix).partition("-")[0]
            if process.isdigit() and not _is_running(int(process)):
                shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=f"{prefix}{os.getpid()}-") as folder:
        yield Path(folder)


def _is_running(process: int) -> bool:
    """True also where that cannot be found out."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
