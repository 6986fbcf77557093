"""Metadata never cost an image: whatever is wrong with them, the pixels are those of the same file without them."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.errors import ImageError
from mineral_batch.images.decode import open_rgb

from ..conftest import encode, scene

PNG = encode(scene(), "PNG")
JPEG = encode(scene(), "JPEG", quality=90)
HEADER_END = 33  # signature and IHDR


def chunk(kind: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def with_chunk(*chunks: bytes) -> bytes:
    return PNG[:HEADER_END] + b"".join(chunks) + PNG[HEADER_END:]


PNGS = {
    "2 MB of compressed text": with_chunk(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000)))),
    "64 MB of compressed text": with_chunk(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(64_000_000)))),
    "international text": with_chunk(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2_000_000)))),
    "a profile of 1.5 MB": with_chunk(chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(1_500_000)))),
    "a damaged profile": with_chunk(chunk(b"iCCP", b"icc\0\0junk")),
    "text with a wrong checksum": with_chunk(chunk(b"tEXt", b"Comment\0hello", crc=1)),
    "time with a wrong checksum": with_chunk(chunk(b"tIME", bytes(7), crc=1)),
    "damaged EXIF": with_chunk(chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")),
    "short resolution": with_chunk(chunk(b"pHYs", b"\0")),
    "a short gamma": with_chunk(chunk(b"gAMA", b"\0")),
}


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", PNGS)
def test_metadata_of_a_png(kind: str) -> None:
    np.testing.assert_array_equal(np.asarray(open_rgb(PNGS[kind])), np.asarray(scene()))


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_wrong_checksum_of_what_is_needed_is_damage(kind: bytes) -> None:
    at = PNG.index(kind) - 4
    size = int.from_bytes(PNG[at : at + 4], "big")
    broken = bytearray(with_chunk(chunk(b"tEXt", b"Comment\0hello", crc=1)))
    at = broken.index(kind) + 4 + size
    broken[at] ^= 1
    with pytest.raises(ImageError):
        open_rgb(bytes(broken))


def segment(marker: int, data: bytes) -> bytes:
    return b"\xff" + bytes((marker,)) + struct.pack(">H", len(data) + 2) + data


JPEGS = {
    "a short Adobe segment": segment(0xEE, b"Adobe\0"),
    "a shorter Adobe segment": segment(0xEE, b"Adobe"),
    "a short profile": segment(0xE2, b"ICC_PROFILE\0"),
    "a profile with a part missing": segment(0xE2, b"ICC_PROFILE\0\x02\x03" + bytes(50)),
    "a short JFIF segment": segment(0xE0, b"JFIF\0"),
    "short EXIF": segment(0xE1, b"Exif\0\0MM"),
    "empty EXIF": segment(0xE1, b"Exif\0\0"),
    "a short multi-picture index": segment(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\x01"),
    "a short Photoshop resource": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0"),
    "an empty segment": segment(0xEF, b""),
}


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("target", [None, (8, 8)])
def test_metadata_of_a_jpeg(kind: str, target: Any) -> None:
    content = JPEG[:2] + JPEGS[kind] + JPEG[2:]
    expected = np.asarray(open_rgb(JPEG, target=target))
    np.testing.assert_array_equal(np.asarray(open_rgb(content, target=target)), expected)


@pytest.mark.parametrize("cut", [1, 2, 300])
def test_metadata_of_a_webp_that_are_cut_off(cut: int) -> None:
    exif = PILImage.Exif()
    exif[270] = "x" * 501  # an odd size, which is padded
    content = encode(scene(), "WEBP", lossless=True, exif=exif)
    np.testing.assert_array_equal(np.asarray(open_rgb(content[:-cut])), np.asarray(scene()))


def test_an_orientation_survives_other_damaged_metadata() -> None:
    exif = PILImage.Exif()
    exif[274] = 6
    content = encode(scene(), "PNG", exif=exif)
    broken = content[:HEADER_END] + chunk(b"tEXt", b"Comment\0hello", crc=1) + content[HEADER_END:]
    np.testing.assert_array_equal(np.asarray(open_rgb(broken)), np.asarray(open_rgb(content)))
    assert open_rgb(broken).size == scene().size[::-1]
