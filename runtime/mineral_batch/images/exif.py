"""When and where a photo was taken, from its EXIF (CIPA DC-008). Read only on demand."""

from __future__ import annotations

import io
import math
import re
from datetime import datetime
from typing import TYPE_CHECKING

from PIL import ExifTags
from PIL import Image as PILImage

from mineral_batch.types import ExifInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DECIMALS = 6  # of a degree: a tenth of a meter
_VOID = "V"  # GPSStatus of a receiver without a position

# When the shutter was released, else when the image was stored digitally, else when the file was changed; each with the
# offset from UTC that belongs to it.
_TIMES = (
    (ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal),
    (ExifTags.Base.DateTimeDigitized, ExifTags.Base.OffsetTimeDigitized),
    (ExifTags.Base.DateTime, ExifTags.Base.OffsetTime),
)
# `2023:05:01 10:20:30` as the standard has it, and as programs write it: other separators, `T`, fractions, a zone.
_TIME = re.compile(
    r"(\d{4})[:\-/.](\d{1,2})[:\-/.](\d{1,2})[ T]+(\d{1,2}):(\d{2})(?::(\d{2})(?:[.,]\d+)?)?\s*(Z|[+-]\d{2}:?\d{2})?$"
)


def read_exif(image: bytes | PILImage.Image) -> ExifInfo:
    """Read what an image's EXIF says. Never raises: damaged metadata count as none.

    Args:
        image: a file's bytes, or an open image.
    """
    try:
        opened = image if isinstance(image, PILImage.Image) else PILImage.open(io.BytesIO(image))
        exif = opened.getexif()
        camera, place = dict(exif.get_ifd(ExifTags.IFD.Exif)), dict(exif.get_ifd(ExifTags.IFD.GPSInfo))
        tags = {**dict(exif), **camera}
    except Exception:  # the parser raises almost anything on damaged metadata
        return ExifInfo()
    return ExifInfo(_time(tags), *_position(place))


def _time(tags: Mapping[int, Any]) -> str | None:
    """Return the time in ISO 8601, seconds, with the offset from UTC if there is one."""
    for tag, offset_tag in _TIMES:
        found = _TIME.match(_text(tags.get(tag)))
        if found is None:
            continue
        year, month, day, hour, minute, second = (int(number or 0) for number in found.groups()[:6])
        try:
            time = datetime(year, month, day, hour, minute, second)
        except ValueError:  # no such date; cameras without a set clock write zeros
            continue
        offset = found[7] or _text(tags.get(offset_tag))
        try:
            return datetime.strptime(f"{time.isoformat()}{offset}", "%Y-%m-%dT%H:%M:%S%z").isoformat()
        except ValueError:
            return time.isoformat()
    return None


def _position(place: Mapping[int, Any]) -> tuple[float | None, float | None]:
    """Return (latitude, longitude); both None if either is missing or it is not a position."""
    gps = ExifTags.GPS
    if _text(place.get(gps.GPSStatus)).upper() == _VOID:
        return None, None
    latitude = _degrees(place.get(gps.GPSLatitude), place.get(gps.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(place.get(gps.GPSLongitude), place.get(gps.GPSLongitudeRef), "EW", 180)
    # Zero by zero is in the ocean, and what receivers without a position write; altitude and time say that it had one.
    is_unset = latitude == longitude == 0 and not {gps.GPSAltitude, gps.GPSTimeStamp, gps.GPSDateStamp} & place.keys()
    if latitude is None or longitude is None or is_unset:
        return None, None
    return latitude, longitude


def _degrees(parts: Any, direction: Any, signs: str, limit: float) -> float | None:
    """Return degrees, and minutes and seconds if there are any, towards one of `signs` (positive, negative).

    Some programs write the sign into the numbers instead of, or besides, the direction: any of them means it.
    """
    try:
        values = [float(part) for part in (parts if isinstance(parts, (tuple, list)) else (parts,))]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    mark = _text(direction).upper()[:1]
    if not 1 <= len(values) <= 3 or ((mark not in signs or not mark) and not any(value < 0 for value in values)):
        return None
    size = sum(abs(value) / 60**power for power, value in enumerate(values))
    is_negative = mark == signs[1] or any(value < 0 for value in values)
    degrees = round(-size if is_negative else size, _DECIMALS)
    return degrees if math.isfinite(degrees) and abs(degrees) <= limit else None


def _text(value: Any) -> str:
    """Return a tag's text, which may be bytes; empty if there is none."""
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return value.strip("\0 ") if isinstance(value, str) else ""
