"""The boxes of ISO base media files: HEIC, AVIF, JPEG 2000 and JPEG XL (ISO/IEC 14496-12)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGE_ITEMS = (b"hvc1", b"av01", b"avc1", b"j2k1", b"vvc1")


def image_extents(content: bytes) -> Iterator[tuple[int, int]]:
    """Return where the coded images of a HEIF file are (ISO/IEC 14496-12 8.11)."""
    meta = next((body for kind, *body in boxes(content, 0, len(content)) if kind == b"meta"), None)
    if meta is None:
        return
    tables = {kind: body for kind, *body in boxes(content, meta[0] + 4, meta[1])}
    if not {b"iinf", b"iloc"} <= tables.keys():
        return
    kinds = _item_kinds(content, *tables[b"iinf"])
    for item, start, size in _locations(content, *tables[b"iloc"]):
        if kinds.get(item) in _IMAGE_ITEMS:
            yield start, start + size


def boxes(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Return the kind, start and end of the bodies of consecutive boxes; the last one may be cut off at `end`."""
    return ((kind, start, min(stop, end)) for kind, start, stop in _declared(content, at, end))


def is_cut_off(content: bytes) -> bool:
    """Return whether a file ends before its boxes, or the images that they refer to, do."""
    stop = max((stop for _, _, stop in _declared(content, 0, len(content))), default=0)
    return max(stop, *(end for _, end in image_extents(content)), 0) > len(content)


def _declared(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Return the kind, start and end of the bodies of consecutive boxes, as they say."""
    while at + 8 <= end:
        size, kind, header = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        size = size or end - at
        if size < header:
            return
        yield kind, at + header, at + size
        at += size


def _item_kinds(content: bytes, start: int, end: int) -> dict[int, bytes]:
    first = start + (6 if content[start] == 0 else 8)
    kinds = {}
    for kind, at, _ in boxes(content, first, end):
        version = content[at] if at < len(content) else 0
        if kind == b"infe" and version >= 2:
            width = 2 if version == 2 else 4
            kinds[int.from_bytes(content[at + 4 : at + 4 + width], "big")] = content[at + 6 + width : at + 10 + width]
    return kinds


def _locations(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Return (item, offset in the file, size) of each extent."""
    version, sizes = content[start], content[start + 4 : start + 6]
    if len(sizes) < 2:
        return
    offset_size, length_size, base_size, index_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
    at = start + 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(content[at - size : at], "big")

    id_size = 4 if version == 2 else 2
    for _ in range(number(id_size)):
        item = number(id_size)
        method = number(2) & 15 if version in (1, 2) else 0
        number(2)
        base = number(base_size)
        for _ in range(number(2)):
            number(index_size if version in (1, 2) else 0)
            offset, length = number(offset_size), number(length_size)
            if method == 0:
                yield item, base + offset, length
        if at >= end:
            return
