"""Files without their metadata, for those that Pillow does not open because of them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
# Without them the pixels would be others. Color profiles are kept if they are intact and not too large.
_PNG_NEEDED = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"iCCP")
_MAX_PROFILE = 1_000_000
_WEBP_METADATA = (b"EXIF", b"XMP ")


def without_metadata(content: bytes) -> bytes:
    """Return a file with nothing but what its pixels, orientation and colors need.

    Returns:
        The same bytes if it is no JPEG, PNG or WebP, or not well-formed.

    Raises:
        ImageError: if a part of a PNG or WebP that is needed is damaged.
    """
    if content.startswith(_PNG):
        return _PNG + b"".join(_needed_chunks(content))
    if content.startswith(b"\xff\xd8"):
        return content[:2] + b"".join(_needed_segments(content))
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        chunks = b"WEBP" + b"".join(_webp_chunks(content))
        return b"RIFF" + len(chunks).to_bytes(4, "little") + chunks
    return content


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    """Return a WebP's chunks, without metadata that are cut off; a missing byte of padding is added."""
    at = 12
    while at + 8 <= len(content):
        kind, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
        chunk = content[at : at + 8 + size]
        if len(chunk) == 8 + size:
            yield chunk + b"\0" * (size % 2)
        elif kind not in _WEBP_METADATA:
            raise ImageError("image file is truncated")
        at += len(chunk) + size % 2


def _needed_chunks(content: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at + 12 <= len(content):
        size, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        chunk = content[at : at + 12 + size]
        if kind in _PNG_NEEDED:
            is_intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
            if kind[:1].isupper() and not is_intact:
                raise ImageError(f"damaged: wrong checksum in chunk {kind.decode()}")
            if is_intact and (kind != b"iCCP" or (size <= _MAX_PROFILE and _inflated_size(chunk) <= _MAX_PROFILE)):
                yield chunk
        at += 12 + size


def _inflated_size(chunk: bytes) -> int:
    """Return the size of the profile in an iCCP chunk, or one too many if it is damaged or too large."""
    try:
        data = chunk[8:-4].split(b"\0", 1)[1][1:]
        return len(zlib.decompressobj().decompress(data, _MAX_PROFILE + 1))
    except (IndexError, zlib.error):
        return _MAX_PROFILE + 1


def _needed_segments(content: bytes) -> Iterator[bytes]:
    """Return a JPEG's segments but the applications' own, of which Adobe's is kept if it is whole: it tells colors."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA:
            break
        is_adobe = marker == 0xEE and end - at >= 16 and content[at + 4 : at + 9] == b"Adobe"
        if not 0xE0 <= marker <= 0xEF or is_adobe:
            yield content[at:end]
        at = end
    yield content[at:]
