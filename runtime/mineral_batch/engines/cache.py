"""The user's folder for what the program can make anew: engines, timings, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

from mineral_batch.errors import BackendError


def caches() -> Path:
    """Of this program; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mineral-batch"


def make_cache(folder: Path) -> None:
    """Make a folder in `caches()`.

    Raises:
        BackendError: if that is not possible, with what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"cannot make the cache {folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written to"
        ) from None
