"""Camera raw files, by the optional package rawpy (LibRaw)."""

from __future__ import annotations

import importlib
import io
from typing import Any

from PIL import Image as PILImage

from mineral_batch.errors import ImageError, MissingDecoderError
from mineral_batch.images.limits import MAX_PIXELS, check_pixels
from mineral_batch.images.tiff.pages import SENSOR_DATA, is_tiff, read_pages
from mineral_batch.system import pip_install

# CR2, CR3, RAF, ORF (three kinds), RW2 and X3F: offset and bytes that name them.
_SIGNATURES = (
    (8, b"CR\x02"),
    (8, b"crx "),
    (0, b"FUJIFILMCCD-RAW"),
    (0, b"IIRO"),
    (0, b"IIRS"),
    (0, b"MMOR"),
    (0, b"IIU\0"),
    (0, b"FOVb"),
)
# The camera's own rendering is used if it has at least this many pixels; it is what JPEGs of that camera look like, and
# takes a tenth of the time of computing one from the sensor's data.
_MIN_PREVIEW = 1_000_000
# LibRaw's `flip` -> what makes the image upright.
_UPRIGHT = {
    3: PILImage.Transpose.ROTATE_180,
    5: PILImage.Transpose.ROTATE_90,
    6: PILImage.Transpose.ROTATE_270,
}


def is_raw(content: bytes) -> bool:
    """Return whether a file has a camera sensor's data: by its signature, or in any image of a TIFF (DNG, NEF, ARW)."""
    if any(content.startswith(signature, offset) for offset, signature in _SIGNATURES):
        return True
    return is_tiff(content) and any(page.number(262) in SENSOR_DATA for page in read_pages(content))


def open_raw(content: bytes, max_pixels: int = MAX_PIXELS) -> PILImage.Image:
    """Decode a camera raw file, upright, as RGB: its embedded preview if that is large, else from the sensor's data.

    Raises:
        MissingDecoderError: if rawpy is not installed.
        ImageError: if LibRaw does not read the file, or the sensor has more than `max_pixels`.
    """
    try:
        rawpy: Any = importlib.import_module("rawpy")
    except ImportError:
        raise MissingDecoderError(f"camera raw needs an optional package: {pip_install('raw')}") from None
    try:
        with rawpy.imread(io.BytesIO(content)) as raw:
            check_pixels(raw.sizes.raw_width, raw.sizes.raw_height, max_pixels)
            preview = _preview(raw, rawpy)
            if preview is not None:
                return preview
            return PILImage.fromarray(raw.postprocess(use_camera_wb=True, half_size=True, output_bps=8))
    except rawpy.LibRawError as error:
        raise ImageError(f"camera raw: {error}") from None


def _preview(raw: Any, rawpy: Any) -> PILImage.Image | None:
    """Return the embedded preview, upright; None if there is none, or a small one."""
    try:
        thumbnail = raw.extract_thumb()
    except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
        return None
    if thumbnail.format != rawpy.ThumbFormat.JPEG:
        return None
    image = PILImage.open(io.BytesIO(thumbnail.data))
    if image.width * image.height < _MIN_PREVIEW:
        return None
    is_oriented = image.getexif().get(274, 1) != 1
    transpose = None if is_oriented else _UPRIGHT.get(raw.sizes.flip)
    return image if transpose is None else image.transpose(transpose)
