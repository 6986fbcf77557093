"""From a file to the model's input. The only decoder: training and deployment both use it.

An image that cannot be read is a value, `Failure`, that keeps its place in the run.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image as PILImage

from mineral_batch.arguments import require_bool, require_path, shown
from mineral_batch.errors import ImageError, MissingDecoderError, OptionError, one_line
from mineral_batch.images.best_effort import ended, load_part
from mineral_batch.images.budget import decode_budget, decoded_size
from mineral_batch.images.color import ColorTransform, color_transform, to_rgb
from mineral_batch.images.exif import read_exif
from mineral_batch.images.formats import Opened, open_image
from mineral_batch.images.geometry import SIDEWAYS, resize, upright_transpose
from mineral_batch.images.holes import check_holes
from mineral_batch.images.jpeg.decode import load_jpeg
from mineral_batch.images.limits import MAX_PIXELS, check_pixels, check_png_data, read_file
from mineral_batch.images.tiff.load import load_tiff
from mineral_batch.images.tiff.pages import read_pages
from mineral_batch.images.truncated import reason_of
from mineral_batch.images.webp import load_webp
from mineral_batch.model.contract import InputSpec
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


# Their decoder can compute a smaller version of the whole image. (HEIC's would return the file's thumbnail.)
_JPEG = frozenset({"JPEG", "MPO"})

#: Ends the reason of an image of which a part was asked for, and none could be decoded.
NOTHING_DECODED = "; nothing of it could be decoded"
_NO_MEMORY = "not enough memory to decode it; the next run tries again"


def open_rgb(
    source: str | Path | bytes,
    *,
    target: tuple[int, int] | None = None,
    keep_damaged: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> PILImage.Image:
    """Decode a photo upright, as RGB.

    EXIF orientation is applied, colors are converted to sRGB by the file's profile, transparency is composited on
    white, 16-bit channels are scaled to 8, the first frame of an animation is taken. The content decides the format,
    not the file's name. HEIC needs pillow-heif, which is imported when the first such image comes.

    Args:
        source: a path, or the file's bytes.
        target: (width, height) that the result will be resized to. A JPEG is then decoded at the smallest of the
            decoder's own scales (1, 1/2, 1/4, 1/8) that is at least twice that: several times faster for camera
            photos, at 56 dB PSNR against the full decode at 12 megapixels. None decodes in full.
        keep_damaged: of a damaged image return what can be decoded.
        max_pixels: an image with more is not decoded.

    Raises:
        ImageError: if the content is not an image, is damaged or truncated, or is too large.
        OSError: if the file cannot be read.
    """
    content = source if isinstance(source, bytes) else read_file(source)
    try:
        with _decode(content, target, max_pixels, keep_damaged=keep_damaged) as decoded:
            return decoded.transform.apply(decoded.image) if decoded.transform else decoded.image
    except MissingDecoderError:
        raise
    except Exception as error:  # see decode_image
        raise ImageError(reason_of(error, content)) from error


def load_image(path: str | Path, spec: InputSpec, *, exact: bool = False) -> Image | Failure:
    """Read, decode and resize one photo; whatever is wrong with it is returned as a `Failure`.

    Args:
        path: the file.
        spec: the model's input.
        exact: decode JPEGs in full instead of at the nearest sufficient scale (see `open_rgb`).

    Raises:
        OptionError: if an argument has a wrong type.
    """
    require_path("path", path)
    require_bool("exact", exact)
    if not isinstance(spec, InputSpec):
        raise OptionError(f"spec must be an InputSpec, such as ModelContract.input; got {shown(spec)}")
    return decode_image(str(path), lambda: read_file(path), spec, exact=exact)


def decode_image(
    name: str,
    read: Callable[[], bytes | PILImage.Image],
    spec: InputSpec,
    *,
    exact: bool = False,
    with_exif: bool = False,
    keep_damaged: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Image | Failure:
    """Do what `load_image` does, for an image that is not a file of its own.

    Args:
        name: for the result's `path`.
        read: returns the file's bytes, or an image that is decoded already; raises `OSError` or `ImageError`.
        spec: the model's input.
        exact: see `load_image`.
        with_exif: also read when and where the photo was taken.
        keep_damaged: of a damaged image return what can be decoded, with the reason in `Image.damage`.
        max_pixels: see `open_rgb`.
    """
    try:
        content = read()
    except (OSError, ImageError) as error:
        return Failure(name, "read", one_line(error))
    except MemoryError:
        return Failure(name, "read", _NO_MEMORY)
    try:
        target = None if exact else (spec.width, spec.height)
        with _decode(content, target, max_pixels, keep_damaged=keep_damaged) as decoded:
            pixels = resize(decoded.image, spec)
        if decoded.transform:  # after resizing, where there are few pixels to convert
            pixels = decoded.transform.apply_to_pixels(pixels)
        exif = read_exif(content) if with_exif else None
        return Image(name, pixels, *decoded.size, exif, decoded.damage, decoded.further)
    # What the machine lacks is no verdict on the image: like a file that cannot be read, the next run tries it again.
    except MissingDecoderError as error:
        return Failure(name, "read", one_line(error))
    except MemoryError:
        return Failure(name, "read", _NO_MEMORY)
    # Damaged files make the decoders raise almost anything (struct.error, KeyError, SyntaxError, ...).
    except Exception as error:
        return Failure(name, "decode", reason_of(error, content) + NOTHING_DECODED * keep_damaged)


class _Decoded(NamedTuple):
    """A decoded image.

    Attributes:
        image: upright, RGB in the color space of the file's profile.
        size: (width, height) of the upright photo before any scaling by the decoder.
        transform: what converts the image to sRGB; None if it is sRGB.
        damage: why only a part of it could be decoded; None of a whole image.
        further: see `images.formats.Opened`.
    """

    image: PILImage.Image
    size: tuple[int, int]
    transform: ColorTransform | None
    damage: str | None = None
    further: int = 0


@contextmanager
def _decode(
    content: bytes | PILImage.Image, target: tuple[int, int] | None, max_pixels: int, *, keep_damaged: bool = False
) -> Iterator[_Decoded]:
    """Decode an image within the memory that is left for it, which is held until the block ends."""
    # A caller's own image is copied: closing and turning must not touch it.
    file = Opened(content.copy()) if isinstance(content, PILImage.Image) else open_image(content, max_pixels)
    image, content, further = file
    with ExitStack() as opened:
        opened.enter_context(image)
        check_pixels(*image.size, max_pixels)
        if image.format == "PNG":
            check_png_data(image, len(content))
        width, height = image.size
        _draft(image, target)
        with decode_budget().reserve(decoded_size(image, (width, height))):
            damage = None
            try:
                loaded = _load(image, content)
            except (MissingDecoderError, MemoryError):
                raise
            except Exception as error:
                if not (keep_damaged and content):
                    raise
                image = opened.enter_context(open_image(ended(content), max_pixels).image)
                _draft(image, target)
                part = load_part(image)
                if part is None:
                    raise
                loaded, damage = part, reason_of(error, content)
            # Only now are orientation and profile known: Pillow turns a TIFF itself while loading it, and a PNG may
            # carry metadata behind its pixels.
            transpose, transform = upright_transpose(image), color_transform(image)
            is_cmyk = transform is not None and transform.mode == "CMYK"
            rgb = to_rgb(loaded, transform if is_cmyk else None)
            yield _Decoded(
                rgb if transpose is None else rgb.transpose(transpose),
                (width, height) if transpose not in SIDEWAYS else (height, width),
                None if is_cmyk else transform,
                damage,
                further,
            )


def _draft(image: PILImage.Image, target: tuple[int, int] | None) -> None:
    """Let the decoder of a JPEG compute a smaller image."""
    if target is not None and image.format in _JPEG:
        image.draft(None, (2 * max(target), 2 * max(target)))


def _load(image: PILImage.Image, content: bytes) -> PILImage.Image:
    """Decode the pixels of an open image, unless there is damage that Pillow does not notice."""
    if content and image.format in _JPEG:
        return load_jpeg(image, content)
    if content and image.format == "TIFF":
        return load_tiff(image, read_pages(content)[0])
    check_holes(content, image.format)
    if content and image.format == "WEBP":
        return load_webp(image, content)
    image.load()
    return image
