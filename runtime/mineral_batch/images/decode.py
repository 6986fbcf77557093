"""From a file to the model's input. The only decoder: training and deployment both use it.

An image that cannot be read is a value, `Failure`, that keeps its place in the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from mineral_batch.errors import ImageError, MissingDecoderError, one_line
from mineral_batch.images.color import to_rgb
from mineral_batch.images.exif import read_exif
from mineral_batch.images.formats import open_image
from mineral_batch.images.geometry import SIDEWAYS, resize, upright_transpose
from mineral_batch.images.limits import check_pixels, read_file
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.model.contract import InputSpec


# Formats whose decoders compute a smaller version of the whole image. (HEIC's would return the file's thumbnail.)
_SCALABLE = frozenset({"JPEG", "MPO"})


def open_rgb(source: str | Path | bytes, *, target: tuple[int, int] | None = None) -> PILImage.Image:
    """Decode a photo upright, as RGB.

    EXIF orientation is applied, transparency is composited on white, 16-bit channels are scaled to 8, the first
    frame of an animation is taken. The content decides the format, not the file's name. Colour profiles are not
    applied. HEIC needs pillow-heif, which is imported when the first such image comes.

    Args:
        source: a path, or the file's bytes.
        target: (width, height) that the result will be resized to. A JPEG is then decoded at the smallest of the
            decoder's own scales (1, 1/2, 1/4, 1/8) that is at least twice that: several times faster for camera
            photos, at 56 dB PSNR against the full decode at 12 megapixels. None decodes in full.

    Raises:
        ImageError: if the content is not an image, is damaged or truncated, or is too large.
        OSError: if the file cannot be read.
    """
    content = source if isinstance(source, bytes) else read_file(Path(source))
    try:
        return _decode(content, target)[0]
    except ImageError:
        raise
    except Exception as error:  # see decode_image
        raise ImageError(one_line(error)) from error


def load_image(path: str | Path, spec: InputSpec, *, exact: bool = False) -> Image | Failure:
    """Read, decode and resize one photo; whatever is wrong with it is returned as a `Failure`.

    Args:
        path: the file.
        spec: the model's input.
        exact: decode JPEGs in full instead of at the nearest sufficient scale (see `open_rgb`).
    """
    return decode_image(str(path), lambda: read_file(Path(path)), spec, exact=exact)


def decode_image(
    name: str,
    read: Callable[[], bytes | PILImage.Image],
    spec: InputSpec,
    *,
    exact: bool = False,
    with_exif: bool = False,
) -> Image | Failure:
    """Do what `load_image` does, for an image that is not a file of its own.

    Args:
        name: for the result's `path`.
        read: returns the file's bytes, or an image that is decoded already; raises `OSError` or `ImageError`.
        spec: the model's input.
        exact: see `load_image`.
        with_exif: also read when and where the photo was taken.
    """
    try:
        content = read()
    except (OSError, ImageError) as error:
        return Failure(name, "read", one_line(error))
    try:
        image, (width, height) = _decode(content, None if exact else (spec.width, spec.height))
        exif = read_exif(content) if with_exif else None
        return Image(name, resize(image, spec), width, height, exif)
    except MissingDecoderError as error:  # like a file that cannot be read, it is tried again in the next run
        return Failure(name, "read", one_line(error))
    # Damaged files make the decoders raise almost anything (struct.error, KeyError, SyntaxError, MemoryError, ...).
    except Exception as error:
        return Failure(name, "decode", one_line(error))


def _decode(content: bytes | PILImage.Image, target: tuple[int, int] | None) -> tuple[PILImage.Image, tuple[int, int]]:
    """Return the upright RGB image, and (width, height) of the upright photo before any scaling by the decoder."""
    # A caller's own image is copied: closing and turning must not touch it.
    with content.copy() if isinstance(content, PILImage.Image) else open_image(content) as image:
        check_pixels(*image.size)
        width, height = image.size
        if target is not None and image.format in _SCALABLE:
            image.draft(None, (2 * max(target), 2 * max(target)))
        # Only now is the orientation known: Pillow turns a TIFF itself while loading it, and a PNG may carry the tag
        # behind its pixels.
        image.load()
        transpose = upright_transpose(image)
        rgb = to_rgb(image)
        upright = (width, height) if transpose not in SIDEWAYS else (height, width)
        return (rgb if transpose is None else rgb.transpose(transpose)), upright
