"""Holes of zeros in compressed data of formats whose decoders do not notice them.

WebP, HEIC, AVIF and JPEG 2000 code their pixels arithmetically, without checksums: any bytes decode to some image. But
the coders never write long runs of zeros, which is what a damaged disk or an interrupted download leaves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mineral_batch.errors import ImageError
from mineral_batch.images.boxes import image_extents

if TYPE_CHECKING:
    from collections.abc import Iterator

# Longer than what a coder writes by chance: 2^-256.
_HOLE = 32
# Bytes of zeros for each macroblock of VP8: a plain background is coded as zeros, of which a photo with one has 0.04
# bytes per macroblock at most.
_PLAIN_BLOCK = 0.15

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
        # Lossless ones are left out: their prefix codes may be zeros for long, and decoding them tells (images.webp).
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
    for start, end in image_extents(content):
        yield start, end, _HOLE


_REGIONS = {
    "WEBP": _webp_regions,
    "JPEG2000": _jpeg2000_regions,
    "HEIF": _heif_regions,
    "AVIF": _heif_regions,
}
