"""When and where a photo was taken, however programs wrote it down."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import ExifTags
from PIL import Image as PILImage

from mineral_batch.images.exif import read_exif
from mineral_batch.types import ExifInfo

from ..conftest import encode, scene

SYDNEY = ((33.0, 51.0, 30.0), (151.0, 12.0, 36.0))


def content(tags: dict[int, Any] | None = None, gps: dict[int, Any] | None = None, base: Any = None) -> bytes:
    exif = PILImage.Exif()
    for tag, value in (base or {}).items():
        exif[tag] = value
    if tags:
        exif.get_ifd(ExifTags.IFD.Exif).update(tags)
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    return encode(scene(), "JPEG", exif=exif)


def place(latitude: Any, north: Any, longitude: Any, east: Any, **more: Any) -> tuple[float | None, float | None]:
    gps = {1: north, 2: latitude, 3: east, 4: longitude} | {int(tag[1:]): value for tag, value in more.items()}
    found = read_exif(content(gps={tag: value for tag, value in gps.items() if value is not None}))
    return found.latitude, found.longitude


@pytest.mark.parametrize(
    ("latitude", "south"),
    [
        ((33, 51, 30), "S"),
        ((33.858333, 0, 0), "S"),
        ((33, 51.5, 0), "S"),
        ((33, 51.5), "S"),
        ((33.858333,), "S"),
        ((33, 51, 30), "s"),
        ((33, 51, 30), "South"),
    ],
)
def test_degrees_with_or_without_minutes_and_seconds(latitude: Any, south: Any) -> None:
    found, _ = place(latitude, south, SYDNEY[1], "E")
    assert found == pytest.approx(-33.858333, abs=1e-5)


@pytest.mark.parametrize("mark", ["S", "N", None])
@pytest.mark.parametrize("parts", [(-33.0, 51.0, 30.0), (-33.0, -51.0, -30.0)])
def test_a_sign_in_the_numbers_and_a_direction_are_not_counted_twice(parts: Any, mark: Any) -> None:
    image = PILImage.new("RGB", (8, 8))
    image.getexif().get_ifd(ExifTags.IFD.GPSInfo).update({2: parts, 3: "E", 4: SYDNEY[1]} | ({1: mark} if mark else {}))
    assert read_exif(image).latitude == pytest.approx(-33.858333, abs=1e-5)


def test_a_direction_in_bytes_is_read() -> None:
    image = PILImage.new("RGB", (8, 8))
    image.getexif().get_ifd(ExifTags.IFD.GPSInfo).update({1: b"S\0", 2: SYDNEY[0], 3: b"E\0", 4: SYDNEY[1]})
    found = read_exif(image)
    assert (found.latitude, found.longitude) == pytest.approx((-33.858333, 151.21), abs=1e-5)


def test_what_is_no_position() -> None:
    assert place((0, 0, 0), "N", (0, 0, 0), "E") == (None, None)
    assert place((0, 0, 0), "N", (0, 0, 0), "E", t6=12.0) == (0.0, 0.0), "with an altitude it is one"
    assert place(*(SYDNEY[0], "S", SYDNEY[1], "E"), t9="V") == (None, None)
    assert place(*(SYDNEY[0], "S", SYDNEY[1], "E"), t9="A") == pytest.approx((-33.858333, 151.21), abs=1e-5)
    assert place((133, 0, 0), "S", SYDNEY[1], "E") == (None, None)
    assert place(SYDNEY[0], None, SYDNEY[1], "E") == (None, None)
    assert place(SYDNEY[0], "S", None, None) == (None, None)


ORIGINAL, DIGITIZED, OFFSET = 0x9003, 0x9004, 0x9011


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023:05:01 10:20:30", "2023-05-01T10:20:30"),
        ("2023-05-01 10:20:30", "2023-05-01T10:20:30"),
        ("2023-05-01T10:20:30", "2023-05-01T10:20:30"),
        ("2023/05/01 10:20:30", "2023-05-01T10:20:30"),
        ("2023:05:01 10:20:30.123", "2023-05-01T10:20:30"),
        ("2023:05:01 10:20:30+02:00", "2023-05-01T10:20:30+02:00"),
        ("2023-05-01T10:20:30Z", "2023-05-01T10:20:30+00:00"),
        ("2023:05:01 10:20", "2023-05-01T10:20:00"),
        ("2023:05:01 10:20:30\0", "2023-05-01T10:20:30"),
        ("0000:00:00 00:00:00", None),
        ("    :  :     :  :  ", None),
        ("2023:13:41 10:20:30", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_a_time_in_the_forms_that_programs_write(text: str, expected: str | None) -> None:
    assert read_exif(content({ORIGINAL: text})).time == expected


def test_the_next_best_time_is_taken_where_there_is_none() -> None:
    assert read_exif(content({DIGITIZED: "2023:05:01 10:20:30"})).time == "2023-05-01T10:20:30"
    assert read_exif(content(base={0x0132: "2023:05:01 10:20:30"})).time == "2023-05-01T10:20:30"
    all_three = content(
        {ORIGINAL: "2021:01:01 00:00:01", DIGITIZED: "2022:01:01 00:00:02"}, base={0x0132: "2023:01:01 00:00:03"}
    )
    assert read_exif(all_three).time == "2021-01-01T00:00:01"
    unset = content({ORIGINAL: "0000:00:00 00:00:00", DIGITIZED: "2022:01:01 00:00:02"})
    assert read_exif(unset).time == "2022-01-01T00:00:02"


def test_an_offset_from_utc_is_kept() -> None:
    assert read_exif(content({ORIGINAL: "2023:05:01 10:20:30", OFFSET: "+10:00"})).time == "2023-05-01T10:20:30+10:00"
    assert read_exif(content({ORIGINAL: "2023:05:01 10:20:30", OFFSET: "junk"})).time == "2023-05-01T10:20:30"


@pytest.mark.parametrize("image", [b"", b"no image", encode(scene(), "PNG")])
def test_without_exif_there_is_nothing(image: bytes) -> None:
    assert read_exif(image) == ExifInfo()
