"""Known images that a GPU must decode as Pillow does before it decodes a user's."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.errors import BackendError
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.geometry import resize
from mineral_batch.images.gpu.batch import install_command
from mineral_batch.images.gpu.jpeg import GpuJpeg

if TYPE_CHECKING:
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.images.gpu.batch import BatchDecoder
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

# (width, height) of the test image: above a megapixel, from where nvJPEG uses another of its decoders.
_SIZE = (1280, 960)
_BASELINE = "baseline"
# Largest mean difference from Pillow's pixels, of 255, that rounding explains in such an image.
_TOLERANCE = 2.0


def warm_up_jpeg() -> bytes:
    """Return the JPEG that a decoder is warmed up with."""
    return _test_jpegs(_SIZE)[_BASELINE]


def check_pixels(decoder: BatchDecoder, gpu: Gpu, spec: InputSpec, version: str) -> None:
    """Compare the GPU's pixels of every kind of JPEG with Pillow's.

    Raises:
        BackendError: if they differ, or if the GPU decodes no baseline JPEG.
    """
    for kind, content in _test_jpegs(_SIZE).items():
        pixels = _decode(decoder, kind)
        if not isinstance(pixels, str):
            difference = np.abs(pixels.astype(int) - resize(open_rgb(content), spec)).mean()
            if difference > _TOLERANCE:
                raise BackendError(
                    f"nvImageCodec {version} gives wrong pixels on {gpu.name} (a {kind} JPEG differs by "
                    f"{difference:.1f} of 255 on average): use --decode cpu"
                )
        elif kind == _BASELINE:
            raise BackendError(
                f"nvImageCodec {version} decodes no JPEG on {gpu.name} ({pixels}); most often nvJPEG is missing: "
                f"{install_command()}"
            )


def require_alive(decoder: BatchDecoder, reason: str) -> None:
    """Check that the decoder still decodes anything; nvImageCodec reports most of its own failures by refusing.

    Raises:
        RuntimeError: with the reason, if it does not.
    """
    if isinstance(_decode(decoder, _BASELINE), str):
        raise RuntimeError(reason)


def _decode(decoder: BatchDecoder, kind: str) -> Pixels | str:
    with capture_lock.shared():
        [result] = decoder.run([GpuJpeg(_test_jpegs(_SIZE)[kind], _SIZE, None)])
    return result


@cache
def _test_jpegs(size: tuple[int, int]) -> dict[str, bytes]:
    """Encode an image with gradients in all directions, once for each decoder that nvImageCodec may use.

    A GPU's JPEG engines decode the baseline one, or a decoder on its cores where there are no engines; neither decodes
    the progressive one. If either of the other kinds is refused, the CPU decodes such images.
    """
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    waves = [127.5 + 110 * np.sin(x / (40 + 20 * c) + y / (60 - 15 * c)) for c in range(3)]
    image = PILImage.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    return {
        _BASELINE: _jpeg(image),
        "progressive": _jpeg(image, progressive=True),
        "gray": _jpeg(image.convert("L")),
    }


def _jpeg(image: PILImage.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()
