"""What can still be decoded of a damaged image; the caller marks it as such."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image as PILImage

_JPEG_END = b"\xff\xd9"


def ended(content: bytes) -> bytes:
    """Return a file's bytes; a JPEG gets an end, without which Pillow takes it for a download that is not complete."""
    return content + _JPEG_END if content.startswith(b"\xff\xd8") else content


def load_part(image: PILImage.Image) -> PILImage.Image | None:
    """Decode an open image as far as possible: rows that are missing stay black, or gray in a JPEG.

    Returns:
        An image without the file behind it, in the mode and with the metadata of `image`; None if nothing can be
        decoded.

    Raises:
        MemoryError: if memory runs out.
    """
    # Damaged files make the decoders raise almost anything; lack of memory is no damage.
    with suppress(ArithmeticError, AttributeError, EOFError, LookupError, OSError, SyntaxError, TypeError, ValueError):
        image.load()
    core = getattr(image, "_im", None)  # Pillow keeps what was decoded before the error here
    # Every channel but transparency: an image that is black as far as it goes has nothing to predict.
    if core is None or not any(high for _, high in _extrema(image, core)):
        return None
    return image._new(core)


def _extrema(image: PILImage.Image, core: object) -> list[tuple[float, float]]:
    colors = image._new(core).convert("RGB")  # type: ignore[arg-type]
    return [low_high for low_high in colors.getextrema() if isinstance(low_high, tuple)]
