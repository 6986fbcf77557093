"""TIFFs decoded by our own reader, where Pillow gives wrong pixels or does not notice damage.

Pillow reads packed samples without scaling them, ignores that zero may be white beyond 8 bits, takes unsigned 32-bit
samples for signed ones and mixes up planes of 16 bits; libtiff leaves checksums and libjpeg's warnings aside.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import simplejpeg
from PIL import Image as PILImage

from mineral_batch.errors import ImageError
from mineral_batch.images.jpeg.damage import check_structure, check_warning
from mineral_batch.images.tiff.samples import UNSIGNED, SampleFormat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from mineral_batch.images.tiff.pages import Page

_NONE, _JPEG, _DEFLATE = (1,), (7,), (8, 32946)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# Adobe's marker, which says that three components are RGB and not YCbCr.
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"


def can_read(page: Page, *, ordinary: bool = False) -> bool:
    """Return whether this reader decodes an image; else it is left to Pillow.

    Args:
        page: the image.
        ordinary: also what Pillow decodes rightly.
    """
    compression, photometric = page.number(259, 1), page.number(262, -1)
    if page.number(266, 1) != 1 or not page.pixels or not 1 <= page.number(277, 1) <= 4:
        return False
    if compression in _JPEG:
        is_plain = page.number(284, 1) == 1 and _bits(page) == 8
        return is_plain and (page.number(277, 1), photometric) in ((1, _BLACK_IS_ZERO), (3, _RGB), (3, _YCBCR))
    if photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or len(set(page.tags.get(258, (1,)))) > 1:
        return False
    samples = sample_format(page)
    if compression in _DEFLATE:
        is_differenced = page.number(317, 1) == 2 and samples.dtype is not None
        return samples.bits >= 8 and (page.number(317, 1) == 1 or is_differenced) and _is_known(samples)
    is_odd = samples.bits not in (1, 2, 4, 8) or samples.kind != UNSIGNED
    return compression in _NONE and (is_odd or ordinary) and _is_known(samples)


def sample_format(page: Page) -> SampleFormat:
    """Return how an image's samples are stored."""
    kind = page.number(339, UNSIGNED)
    return SampleFormat(kind if kind != 4 else UNSIGNED, _bits(page), page.order, page.number(262) == _WHITE_IS_ZERO)


def read(content: bytes, page: Page) -> PILImage.Image:
    """Decode an image: `L`, `LA`, `RGB` or `RGBA`, as it is stored.

    Raises:
        ImageError: if it is damaged or truncated.
    """
    width, height, samples = page.number(256), page.number(257), page.number(277, 1)
    format_ = sample_format(page)
    is_deferred = format_.depends_on_maximum
    pixels = np.zeros((height, width, samples), format_.dtype if is_deferred else np.uint8)
    for plane, top, left, segment in _segments(content, page):
        rows, columns = min(height - top, segment.shape[0]), min(width - left, segment.shape[1])
        part = segment[:rows, :columns]
        if not is_deferred and (part.dtype != np.uint8 or format_.is_inverted):
            part = format_.to_8_bits(part)
        pixels[top : top + rows, left : left + columns, plane] = part
    return _image(format_.to_8_bits(pixels) if is_deferred else pixels, page)


def _image(pixels: NDArray[np.uint8], page: Page) -> PILImage.Image:
    extra = page.number(338)
    is_color = page.number(262) in (_RGB, _YCBCR)
    colors = 3 if is_color else 1
    if extra in (1, 2) and pixels.shape[2] > colors:
        image = PILImage.fromarray(np.ascontiguousarray(pixels[..., : colors + 1]))
        if extra == 1 and is_color:  # colors that are multiplied by their alpha
            return PILImage.frombytes("RGBa", image.size, image.tobytes()).convert("RGBA")
        return image
    pixels = pixels[..., :colors]
    return PILImage.fromarray(np.ascontiguousarray(pixels if colors == 3 else pixels[..., 0]))


def _segments(content: bytes, page: Page) -> Iterator[tuple[Any, int, int, NDArray[Any]]]:
    """Return (index of the planes, top, left, (rows, columns, samples)) of every strip or tile."""
    is_tiled = 322 in page.tags
    width, height, samples = page.number(256), page.number(257), page.number(277, 1)
    if is_tiled:
        columns, rows = page.number(322), page.number(323)
        offsets, sizes = page.tags.get(324, ()), page.tags.get(325, ())
    else:
        columns, rows = width, min(page.number(278, height), height)
        offsets, sizes = page.tags.get(273, ()), page.tags.get(279, ())
    if rows < 1 or columns < 1:
        raise ImageError("its strips have no size")
    is_planar = page.number(284, 1) == 2 and samples > 1
    places = [(top, left) for top in range(0, height, rows) for left in range(0, width, columns)]
    planes = [slice(plane, plane + 1) for plane in range(samples)] if is_planar else [slice(0, samples)]
    if not sizes and len(offsets) == 1:  # old writers leave the size of a single strip out
        sizes = (len(content) - offsets[0],)
    if min(len(offsets), len(sizes)) < len(places) * len(planes):
        raise ImageError("damaged: strips are missing")
    index = 0
    for plane in planes:
        for top, left in places:
            expected = rows if is_tiled else min(rows, height - top)
            data = content[offsets[index] : offsets[index] + sizes[index]]
            if len(data) < sizes[index]:
                raise ImageError("image file is truncated")
            yield plane, top, left, _decode(data, page, expected, columns, plane.stop - plane.start)
            index += 1


def _decode(data: bytes, page: Page, rows: int, columns: int, samples: int) -> NDArray[Any]:
    """Return (rows, columns, samples)."""
    if page.number(259, 1) in _JPEG:
        return _decode_jpeg(data, page)
    format_ = sample_format(page)
    if page.number(259, 1) in _DEFLATE:
        row_bytes = -(-columns * samples * format_.bits // 8)
        data = _inflate(data, max(rows, page.number(278, rows)) * row_bytes)  # the last strip may be as long as others
    values = format_.unpack(data, rows, columns * samples)
    if len(values) < rows:
        raise ImageError("image file is truncated")
    values = values.reshape(rows, columns, samples)
    if page.number(317, 1) == 2:
        values = np.cumsum(values, axis=1, dtype=values.dtype.newbyteorder("="))
    return values


def _inflate(data: bytes, size: int) -> bytes:
    """Decompress a strip of at most `size` bytes, and check its checksum."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise ImageError(f"damaged: {error}") from None
    if len(inflated) > size:
        raise ImageError("damaged: a strip is longer than its rows")
    return inflated


def _decode_jpeg(data: bytes, page: Page) -> NDArray[Any]:
    tables = bytes(page.tags.get(347, ()))
    marker = _ADOBE_RGB if page.number(262) == _RGB else b""
    # An abbreviated stream: its tables are kept once for all strips.
    jpeg = data[:2] + marker + (tables[2:-2] if tables else b"") + data[2:]
    check_structure(jpeg)
    color_space = "GRAY" if page.number(277, 1) == 1 else "RGB"
    try:
        pixels: NDArray[Any] = simplejpeg.decode_jpeg(jpeg, color_space)
    except ValueError as error:
        check_warning(str(error), jpeg)
        if "extraneous" not in str(error):  # fatal errors, which Pillow would report for a whole file
            raise ImageError(f"damaged: {error}") from None
        pixels = simplejpeg.decode_jpeg(jpeg, color_space, strict=False)
    return pixels


def _bits(page: Page) -> int:
    return page.number(258, 1)


def _is_known(samples: SampleFormat) -> bool:
    return samples.dtype is not None or samples.is_packed
