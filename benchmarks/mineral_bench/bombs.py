"""Small files that promise, or unpack to, gigabytes; every one is a photograph by its name."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from typing import TYPE_CHECKING

from PIL import Image as PILImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

# Just within the limit of 256 megapixels.
_WIDTH, _HEIGHT = 16_000, 15_900
_MEBIBYTE = 2**20


def solid_webp(width: int = 16_383, height: int = 15_600) -> bytes:
    """A lossless WebP of one color: five prefix codes of one symbol each, so that the pixels take no bit."""
    bits = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3)]
    bits += [(0, 1), (0, 1), (0, 1)]  # no transform, no color cache, no meta prefix codes
    bits += [(1, 1), (0, 1), (0, 1), (0, 1)] * 5  # a simple code, one symbol, in one bit: 0
    data = _bits(bits)
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def zeros_png(width: int = _WIDTH, height: int = _HEIGHT, bits: int = 8, color: int = 6) -> bytes:
    """A PNG of zeros; color 0 is gray, 2 RGB, 6 RGBA."""
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[color] * bits // 8)
    return _png(width, height, bits, color, _deflated(row for _ in range(height)))


def _png(width: int, height: int, bits: int, color: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def float_tiff(width: int = _WIDTH, height: int = _HEIGHT) -> bytes:
    """A TIFF of 32-bit floating point, deflated in one strip."""
    data = _deflated(bytes(4 * width) for _ in range(height))
    fields = [(256, width), (257, height), (258, 32), (259, 8), (262, 1), (273, 0), (277, 1), (278, height)]
    fields += [(279, len(data)), (339, 3)]
    start = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 273 else value) for tag, value in fields)
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4) + data


def many_scans(scans: int, size: tuple[int, int]) -> bytes:
    """A gray progressive JPEG of one color whose last scan, some tens of bytes, is repeated."""
    out = io.BytesIO()
    PILImage.new("L", size, 128).save(out, "JPEG", progressive=True)
    content = out.getvalue()
    last = content.rfind(b"\xff\xda")
    return content[:-2] + content[last:-2] * (scans - content.count(b"\xff\xda")) + b"\xff\xd9"


def long_comment(size: int = 300 * _MEBIBYTE) -> bytes:
    """A PPM with a comment of that many bytes."""
    return b"P6\n#" + b"x" * size + b"\n4 4\n255\n" + bytes(48)


def _bits(parts: Iterable[tuple[int, int]]) -> bytes:
    """(value, bits) one after the other, the lowest bit first."""
    number = length = 0
    for value, bits in parts:
        number |= value << length
        length += bits
    return number.to_bytes(-(-length // 8), "little")


def _deflated(blocks: Iterable[bytes]) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*map(packer.compress, blocks), packer.flush()])


def _write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index in range(8):
            with archive.open(f"{index}.jpg", "w") as member:
                for _ in range(1000):
                    member.write(bytes(_MEBIBYTE))


def _write_tgz(folder: Path) -> None:
    with gzip.open(folder / "bomb.tar.gz", "wb", compresslevel=1) as packed:
        for index in range(8):
            member = tarfile.TarInfo(f"{index}.jpg")
            member.size = 1000 * _MEBIBYTE
            packed.write(member.tobuf())
            for _ in range(1000):
                packed.write(bytes(_MEBIBYTE))
        packed.write(bytes(1024))


def _one(name: str, make: Callable[[], bytes], count: int = 1) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        content = make()
        for index in range(count):
            (folder / f"{index}-{name}").write_bytes(content)

    return write


#: What each is called in a report, and what writes it into an empty folder.
BOMBS: dict[str, Callable[[Path], None]] = {
    "WebP 16383 x 15600": _one("a.webp", solid_webp),
    "PNG 16000 x 15900 RGBA": _one("a.png", zeros_png),
    "PNG 16000 x 15900, 16 bits": _one("a.png", lambda: zeros_png(bits=16, color=0)),
    "TIFF 16000 x 15900, float": _one("a.tif", float_tiff),
    "four of the PNGs": _one("a.png", zeros_png, 4),
    "PNG 1 x 255,000,000": _one("a.png", lambda: _png(1, 255_000_000, 8, 0, b"")),
    "zip, 8 members of 1 GB": _write_zip,
    "tar.gz, 8 members of 1 GB": _write_tgz,
    "JPEG 4000 x 3000 of 2,000 scans": _one("a.jpg", lambda: many_scans(2000, (4000, 3000))),
    "JPEG 16000 x 15900 of 150 scans": _one("a.jpg", lambda: many_scans(150, (_WIDTH, _HEIGHT))),
    "PPM with a comment of 300 MB": _one("a.ppm", long_comment),
}
