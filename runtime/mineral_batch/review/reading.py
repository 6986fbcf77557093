"""The files behind a run's images, found by name."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError
from mineral_batch.files import is_file
from mineral_batch.images.archives import is_archive
from mineral_batch.images.discover import find_sources
from mineral_batch.images.limits import read_file
from mineral_batch.images.remote import reader_of
from mineral_batch.storage.urls import is_url
from mineral_batch.types import Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from PIL import Image as PILImage

    Read = Callable[[], bytes | PILImage.Image]


class Reader:
    """Finds images by the names that a run gave them; safe from several threads.

    Args:
        base: where relative paths start.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._members: dict[Path, dict[str, Read]] = {}
        self._lock = threading.Lock()

    def find(self, name: str) -> Read | None:
        """How to read an image, a file or a member of an archive; None if it is no longer there."""
        if is_url(name):
            return reader_of(name)
        file = self._base / name
        if is_file(file):
            return partial(read_file, file)
        archive = next((folder for folder in file.parents if is_archive(folder.name) and is_file(folder)), None)
        return None if archive is None else self._listed(archive).get(str(file))

    def _listed(self, archive: Path) -> dict[str, Read]:
        with self._lock:
            if archive not in self._members:
                try:
                    found = [source for source in find_sources([archive]) if isinstance(source, Source)]
                except DataError:
                    found = []
                self._members[archive] = {source.name: source.read for source in found}
            return self._members[archive]
