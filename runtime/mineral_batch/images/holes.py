"""Holes of zeros in compressed data of formats whose decoders do not notice them.

WebP, HEIC, AVIF and JPEG 2000 code their pixels arithmetically, without checksums: any bytes decode to some image. But
the coders never write long runs of zeros, which is what a damaged disk or an interrupted download leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Longer than what a coder writes by chance: 2^-256.
_HOLE = 32
# Bytes of zeros for each macroblock of VP8: a plain background is coded as zeros, of which a photo with one has 0.04
# bytes per macroblock at most.
_PLAIN_BLOCK = 0.15
_IMAGE_ITEMS = (b"hvc1", b"av01", b"avc1", b"j2k1", b"vvc1")

#: (start, end) of compressed data within a file, and the length from which zeros are a hole.
_Region = tuple[int, int, int]


def check_holes(content: bytes, kind: str | None) -> None:
    """Check a file of one of Pillow's formats.

    Raises:
        ImageError: if zeros fill a part of the image data.
    """
    for start, end, length in _REGIONS[kind](content) if kind in _REGIONS else ():
        hole = content.find(bytes(length), start, end)
        if hole >= 0 and content[hole:end].strip(b"\0"):  # up to the end they are padding
            raise ImageError(f"damaged: zeros instead of image data at byte {hole}")


def _webp_regions(content: bytes) -> Iterator[_Region]:
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        # Lossless ones are left out: their prefix codes may be zeros for long, and libwebp notices most damage in them.
        if content[at : at + 4] == b"VP8 ":
            blocks = _vp8_pixels(content[at + 8 : at + 18]) // 256
            yield at + 8, at + 8 + size, 4 * _HOLE + int(_PLAIN_BLOCK * blocks)
        at += 8 + size + size % 2


def _vp8_pixels(frame: bytes) -> int:
    """Return width times height from the head of a key frame (RFC 6386 9.1)."""
    width, height = (int.from_bytes(frame[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return width * height


def _jpeg2000_regions(content: bytes) -> Iterator[_Region]:
    """Tile parts (ISO/IEC 15444-1 A.4.2). Packets without data are one zero byte, which makes short runs legitimate."""
    start = content.find(b"\xff\x4f\xff\x51")  # SOC and SIZ
    style = content.find(b"\xff\x52", start)  # COD
    first = content.find(b"\xff\x93", style)  # SOD
    if min(start, style, first) < 0 or content[style + 4] & 1:  # with precincts there may be any number of packets
        return
    components = int.from_bytes(content[start + 40 : start + 42], "big")
    layers, levels = int.from_bytes(content[style + 6 : style + 8], "big"), content[style + 9]
    yield first, len(content), components * layers * (levels + 1) + _HOLE


def _heif_regions(content: bytes) -> Iterator[_Region]:
    for start, end in _image_extents(content):
        yield start, end, _HOLE


def _image_extents(content: bytes) -> Iterator[tuple[int, int]]:
    """Return where the coded images of a HEIF file are (ISO/IEC 14496-12 8.11)."""
    meta = next((body for kind, *body in _boxes(content, 0, len(content)) if kind == b"meta"), None)
    if meta is None:
        return
    boxes = {kind: body for kind, *body in _boxes(content, meta[0] + 4, meta[1])}
    if not {b"iinf", b"iloc"} <= boxes.keys():
        return
    kinds = _item_kinds(content, *boxes[b"iinf"])
    for item, start, size in _locations(content, *boxes[b"iloc"]):
        if kinds.get(item) in _IMAGE_ITEMS:
            yield start, start + size


def _boxes(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Return the kind, start and end of the bodies of consecutive boxes."""
    while at + 8 <= end:
        size, kind, header = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8], 8
        if size == 1:
            size, header = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        size = size or end - at
        if size < header:
            return
        yield kind, at + header, min(at + size, end)
        at += size


def _item_kinds(content: bytes, start: int, end: int) -> dict[int, bytes]:
    first = start + (6 if content[start] == 0 else 8)
    kinds = {}
    for kind, at, _ in _boxes(content, first, end):
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


_REGIONS = {
    "WEBP": _webp_regions,
    "JPEG2000": _jpeg2000_regions,
    "HEIF": _heif_regions,
    "AVIF": _heif_regions,
}
