"""When and where a photograph was taken, from its EXIF (CIPA DC-008). Read only when asked for."""

from __future__ import annotations

import io
import math
from datetime import datetime
from typing import TYPE_CHECKING

from PIL import ExifTags
from PIL import Image as PILImage

from mineral_batch.types import ExifInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DECIMALS = 6  # of a degree: a tenth of a metre


def read_exif(picture: bytes | PILImage.Image) -> ExifInfo:
    """What a picture's EXIF says. Never raises: metadata that is damaged is as good as none.

    Args:
        picture: a file's bytes, or an open picture.
    """
    try:
        opened = picture if isinstance(picture, PILImage.Image) else PILImage.open(io.BytesIO(picture))
        exif = opened.getexif()
        photo, place = dict(exif.get_ifd(ExifTags.IFD.Exif)), dict(exif.get_ifd(ExifTags.IFD.GPSInfo))
    except Exception:  # the parser raises almost anything on damaged metadata
        return ExifInfo()
    latitude = _degrees(place.get(ExifTags.GPS.GPSLatitude), place.get(ExifTags.GPS.GPSLatitudeRef), "NS", 90)
    longitude = _degrees(place.get(ExifTags.GPS.GPSLongitude), place.get(ExifTags.GPS.GPSLongitudeRef), "EW", 180)
    if latitude is None or longitude is None:
        latitude = longitude = None
    return ExifInfo(_time(photo), latitude, longitude)


def _time(photo: Mapping[int, Any]) -> str | None:
    """DateTimeOriginal, `YYYY:MM:DD HH:MM:SS`, and OffsetTimeOriginal, `+HH:MM`."""
    try:
        text = str(photo[ExifTags.Base.DateTimeOriginal]).strip("\0 ")
        time = datetime.strptime(text, "%Y:%m:%d %H:%M:%S")
    except (KeyError, ValueError):
        return None
    try:
        offset = str(photo[ExifTags.Base.OffsetTimeOriginal]).strip("\0 ")
        return datetime.strptime(f"{time.isoformat()}{offset}", "%Y-%m-%dT%H:%M:%S%z").isoformat()
    except (KeyError, ValueError):
        return time.isoformat()


def _degrees(parts: Any, direction: Any, signs: str, limit: float) -> float | None:
    """Degrees, minutes and seconds towards one of two `signs` (positive, negative) as decimal degrees."""
    try:
        degrees, minutes, seconds = (float(part) for part in parts)
        sign = (1.0, -1.0)[signs.index(str(direction).strip("\0 ").upper()[:1] or "?")]
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    value = sign * (degrees + minutes / 60 + seconds / 3600)
    return round(value, _DECIMALS) if math.isfinite(value) and abs(value) <= limit else None
