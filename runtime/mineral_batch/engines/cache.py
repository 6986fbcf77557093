"""The user's folder for what the program can make again: engines, kernel timings, compiled kernels."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mineral_batch.errors import BackendError


def make_folder(folder: Path) -> None:
    """Create a folder below `files.cache_folder()` that nobody else can write to: a cached engine is code.

    Raises:
        BackendError: if that is not possible, or somebody else could have put an engine there, with what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _require_private(folder)
    except OSError as error:
        raise BackendError(
            f"cannot make the cache {folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written to"
        ) from None


def _require_private(folder: Path) -> None:
    """Refuse a folder of another user, or one that everybody may write to; take the group's right to write away."""
    if not hasattr(os, "getuid"):  # Windows: the user's profile is private
        return
    status, user = folder.stat(), os.getuid()
    if user not in (status.st_uid, 0):
        raise BackendError(
            f"the cache {folder} belongs to another user, who could run code by an engine in it: "
            f"set XDG_CACHE_HOME to a folder of your own"
        )
    if status.st_mode & stat.S_IWOTH:
        raise BackendError(
            f"everybody may write to the cache {folder}, and an engine in it is code: delete it, it is made again"
        )
    if status.st_mode & stat.S_IWGRP:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~stat.S_IWGRP)
