"""Seals: the last line of a page, table or record is the SHA-256 of everything before it.

So a command knows a file that it wrote, wherever it was moved, and sees whether somebody has edited it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import BinaryIO

from mineral_batch.results.written import foreign, is_nothing

_SEAL = re.compile(rb'(?:<!-- sha256 |  "sha256": ")([0-9a-f]{64})(?: -->\n|"\n\}\n)\Z')
_LONGEST_SEAL = 100  # bytes
_BLOCK = 1 << 20


class SealedFile:
    """Passes on what is written to an open file, and ends it with a seal in an HTML comment."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> None:
        """Write a part."""
        self._digest.update(content)
        self._file.write(content)

    def seal(self) -> None:
        """Write the last line."""
        self._file.write(f"<!-- sha256 {self._digest.hexdigest()} -->\n".encode())


def sealed_markdown(text: str) -> str:
    """Return a text with a seal that Markdown does not show."""
    return f"{text}<!-- sha256 {_sha256(text)} -->\n"


def sealed_json(text: str) -> str:
    """Return an indented JSON object with a seal as its last key."""
    body = f"{text.rstrip().removesuffix('}').rstrip()},\n"
    return f'{body}  "sha256": "{_sha256(body)}"\n}}\n'


def require_sealed(target: Path, command: str) -> None:
    """Check that a file is not there, is empty, or ends with a seal that fits.

    Args:
        target: file to write.
        command: that writes it, for the message.

    Raises:
        DataError: if it was edited, or is somebody else's.
    """
    if is_nothing(target):
        return
    if target.is_dir() or not _has_seal(target):
        raise foreign(target, f"was not written by {command}, or has been edited since")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _has_seal(target: Path) -> bool:
    try:
        with target.open("rb") as file:
            size = target.stat().st_size
            file.seek(max(0, size - _LONGEST_SEAL))
            seal = _SEAL.search(file.read())
            file.seek(0)
            return seal is not None and _digest_of(file, size - len(seal[0])) == seal[1].decode()
    except OSError:
        return False


def _digest_of(file: BinaryIO, size: int) -> str:
    """SHA-256 of the next bytes."""
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()
