"""Which JPEGs a GPU decodes, told from their headers."""

from __future__ import annotations

import io
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from PIL import Image as PILImage

from mineral_batch.images.color import color_transform
from mineral_batch.images.geometry import SIDEWAYS, upright_transpose, visible_box
from mineral_batch.images.gpu.resize import MAX_SIDE
from mineral_batch.images.jpeg.damage import check_structure

if TYPE_CHECKING:
    from mineral_batch.images.color import ColorTransform
    from mineral_batch.images.geometry import Box
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

#: A smaller JPEG takes a CPU core only a few milliseconds, and stays on the CPU.
MIN_PIXELS = 1_000_000
#: The largest image that is decoded on a GPU: 192 MB.
MAX_PIXELS = 64_000_000
_START, _END, _SCAN = b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda"


@dataclass(frozen=True)
class GpuJpeg:
    """A JPEG that a GPU may decode.

    Attributes:
        content: the file's bytes.
        size: (width, height) as stored.
        transpose: what makes it upright.
        transform: what converts it to sRGB; None if it is sRGB.
        result: the pixels that the model sees, not upright yet; or the reason why the GPU does not decode it.
    """

    content: bytes
    size: tuple[int, int]
    transpose: PILImage.Transpose | None
    transform: ColorTransform | None = None
    result: Future[Pixels | str] = field(default_factory=Future)

    @property
    def pixels(self) -> int:
        """How many it has."""
        return self.size[0] * self.size[1]

    def stored_geometry(self, spec: InputSpec) -> tuple[Box, tuple[int, int]]:
        """Return the box that the model sees and (width, height) of its input, both before the image is upright."""
        if self.transpose in SIDEWAYS:
            spec = replace(spec, width=spec.height, height=spec.width)
        return visible_box(self.size, spec), (spec.width, spec.height)


def inspect_jpeg(content: bytes | PILImage.Image, max_pixels: int = MAX_PIXELS) -> GpuJpeg | str:
    """Return a complete, plain, large JPEG, or why this is none; anything doubtful is left to the CPU."""
    if not isinstance(content, bytes) or not content.startswith(_START):
        return "not a JPEG"
    try:
        check_structure(content)
        with PILImage.open(io.BytesIO(content)) as image:
            return _reason_for_cpu(image, content, max_pixels) or GpuJpeg(
                content, image.size, upright_transpose(image), color_transform(image)
            )
    # Damaged headers make Pillow raise almost anything; decoding on the CPU gives the reason for the image's row.
    except Exception:
        return "damaged"


def _reason_for_cpu(image: PILImage.Image, content: bytes, max_pixels: int) -> str:
    """Return why a GPU should not decode it; empty if it should."""
    pixels = image.width * image.height
    if pixels < MIN_PIXELS:
        return f"below {MIN_PIXELS / 1e6:g} megapixel"
    if pixels > max_pixels or max(image.size) > MAX_SIDE:
        return "too large"
    if not _has_common_color_space(image):
        return "colors other than YCbCr and gray"
    return "" if _is_complete(content) else "truncated, or with data behind its end"


def _has_common_color_space(image: PILImage.Image) -> bool:
    """Return whether it is YCbCr or gray; RGB differs only by Adobe's marker or the names of its components."""
    components = [layer[0] for layer in getattr(image, "layer", [])]
    if image.info.get("adobe_transform") == 0 or components == list(b"RGB"):
        return False
    return image.mode in ("RGB", "L")


def _is_complete(content: bytes) -> bool:
    """Return whether the last scan has an end: a decoder on a GPU may fill with gray what is missing.

    The end of a thumbnail in the header of a truncated file does not count: a scan follows it.
    """
    end = content.rfind(_END)
    return end >= 0 and content.find(_SCAN, end) < 0
