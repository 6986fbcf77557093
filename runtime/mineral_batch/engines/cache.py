"""The user's folder for what the program can make again: engines, kernel timings, compiled kernels."""

from __future__ import annotations

from pathlib import Path

from mineral_batch.errors import BackendError


def make_folder(folder: Path) -> None:
    """Create a folder below `files.cache_folder()`.

    Raises:
        BackendError: if that is not possible, with what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(
            f"cannot make the cache {folder}: {error.strerror}; set XDG_CACHE_HOME to a folder that can be written to"
        ) from None
