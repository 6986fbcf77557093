"""Images to measure with if the user gives none: rendered specimens with a sensor's grain."""

from __future__ import annotations

import importlib
import io
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: Name -> (width, height): a phone camera's, a large image of a web page, a data set's.
SIZES: Mapping[str, tuple[int, int]] = {"12 MP": (4000, 3000), "2 MP": (1632, 1224), "384 px": (384, 384)}

#: Name -> (Pillow's format, options): JPEG as cameras and web sites write it.
FORMATS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "JPEG": ("JPEG", {"quality": 90, "subsampling": "4:2:0"}),
    "JPEG, progressive": ("JPEG", {"quality": 90, "subsampling": "4:2:0", "progressive": True}),
    "PNG": ("PNG", {"compress_level": 6}),
    "WebP": ("WEBP", {"quality": 90, "method": 2}),
    "WebP, lossless": ("WEBP", {"lossless": True, "quality": 20, "method": 0}),
    "TIFF": ("TIFF", {"compression": "tiff_lzw"}),
    "AVIF": ("AVIF", {"quality": 80, "speed": 9}),
    "JPEG 2000": ("JPEG2000", {"quality_mode": "rates", "quality_layers": [8]}),
    "HEIC": ("HEIF", {"quality": 80}),
}

_RENDERED = 768
# Standard deviation, of 255: makes a JPEG of 12 megapixels 3 to 5 MB, as cameras' are.
_GRAIN = 3.0


def photograph(width: int, height: int, seed: int = 0) -> PILImage.Image:
    """Make a synthetic specimen of any size, with grain, so that a codec has as much work as with a photograph."""
    from mineral_train.synth import generate

    rendered = PILImage.fromarray(generate(seed, seed=0, size=min(_RENDERED, max(width, height))).pixels)
    pixels = np.asarray(rendered.resize((width, height), PILImage.Resampling.BICUBIC), np.float32)
    grain = np.random.default_rng(seed).normal(0, _GRAIN, (height, width, 1)).astype(np.float32)
    return PILImage.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def encode(picture: PILImage.Image, name: str) -> bytes:
    """Encode an image in one of `FORMATS`."""
    kind, options = FORMATS[name]
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def can_encode(name: str) -> bool:
    """Whether this Pillow writes one of `FORMATS`: AVIF came with 11.3, HEIC needs pillow-heif."""
    PILImage.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    return FORMATS[name][0] in PILImage.SAVE


def write_photographs(folder: Path, count: int, size: tuple[int, int], different: int = 8) -> list[Path]:
    """Write `count` JPEGs to a folder; all but `different` of them are hard links, which take no space."""
    width, height = size
    originals = [encode(photograph(width, height, seed), "JPEG") for seed in range(min(count, different))]
    paths = [folder / f"{index:06d}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        if index < len(originals):
            path.write_bytes(originals[index])
        else:
            path.hardlink_to(paths[index % len(originals)])
    return paths
