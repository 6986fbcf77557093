"""What lies beside the images and is not read: counted by kind, so that nothing vanishes without a word."""

from __future__ import annotations

import io
import re
from collections import Counter
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from mineral_batch.images.archives import OTHER_ARCHIVE_SUFFIXES, is_archive
from mineral_batch.images.names import JXL_SUFFIX, RAW_SUFFIXES
from mineral_batch.system import pip_install

# An image's suffix with something behind it, as browsers and messengers save files: `a.jpg?v=2`, `b.jpg_large`.
_DISGUISED = re.compile(r"\.(jpe?g|png|webp|gif|tiff?|heic|avif)[^a-z0-9.].*$", re.IGNORECASE)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_NO_SUFFIX = "files without suffix"
_ARCHIVE = "name them to open them"
_PACKED = "unpack them"
_RENAME = "name them, or rename them"
# What to do about them inside an archive, where nothing can be named.
_INSIDE = {_ARCHIVE: _PACKED, _RENAME: "rename them"}


class Skipped:
    """Counts of what was found in folders and not read.

    Attributes:
        kinds: (suffix, what to do about it) -> number of files.
        folders: name of a system's or of our own folder -> how many of them were not entered.
        other: number of files that are no images by name or content.
    """

    def __init__(self) -> None:
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.folders: Counter[str] = Counter()
        self.other = 0

    def add_file(self, path: PurePath) -> None:
        """Count a file that is not read because of its name."""
        kind = _kind(path)
        if kind is None:
            self.other += 1
        else:
            self.kinds[kind] += 1

    def add_member(self, name: str) -> None:
        """Count a member of an archive that is not read because of its name, without its folders."""
        kind = _kind(PurePosixPath("/dev/null", name))  # nothing of it is on this machine
        if kind is None:
            self.other += 1
        else:
            suffix, hint = kind
            self.kinds[suffix, _INSIDE.get(hint, hint)] += 1

    def add_folder(self, name: str) -> None:
        """Count a folder that is not entered."""
        self.folders[name] += 1

    def line(self) -> str:
        """Return one line for the user, empty if there is nothing to say: other files need no mention."""
        files = [f"{n:,} {_plural(suffix, n)} ({hint})" for (suffix, hint), n in self.kinds.most_common()]
        folders = [f"{n:,} {name} folder{'s' * (n > 1)}" for name, n in sorted(self.folders.items())]
        return f"Not read: {', '.join([*files, *folders])}" if files or folders else ""

    def record(self) -> dict[str, Any]:
        """Return the same as values for run.json."""
        files: Counter[str] = Counter()
        for (suffix, _), number in self.kinds.items():
            files[suffix] += number
        return {
            "files": dict(sorted(files.items())),
            "folders": dict(sorted(self.folders.items())),
            "other": self.other,
        }


def _plural(suffix: str, number: int) -> str:
    return "file without suffix" if suffix == _NO_SUFFIX and number == 1 else suffix


def _kind(path: PurePath) -> tuple[str, str] | None:
    suffix = path.suffix.lower()
    if suffix in RAW_SUFFIXES:
        return path.suffix, f"camera raw: {pip_install('raw')}"
    if suffix == JXL_SUFFIX:
        return path.suffix, f"JPEG XL: {pip_install('jxl')}"
    if is_archive(path.name):
        return suffix, _ARCHIVE
    if path.name.lower().endswith(OTHER_ARCHIVE_SUFFIXES):
        return suffix, _PACKED
    if found := _DISGUISED.search(path.name):
        return found[0], _RENAME
    return (_NO_SUFFIX, _RENAME) if not suffix and _looks_like_image(path) else None


def _looks_like_image(path: PurePath) -> bool:
    # Opening a pipe waits until somebody writes to it.
    try:
        with Path(path).open("rb") if Path(path).is_file() else io.BytesIO() as file:
            return file.read(8).startswith(_SIGNATURES)
    except OSError:
        return False
