"""Holes, noise and early ends of the compressed data of images: how many are refused, how many are predicted wrongly.

`damaging.py COUNT SEED` prints a JSON object: format -> damage -> [refused, equal to the whole image, wrong].
"""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import ImageError
from mineral_batch.images.decode import open_rgb

if TYPE_CHECKING:
    from collections.abc import Callable

#: Sectors of a disk.
SIZES = (512, 1024, 2048, 4096)
FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    "JPEG baseline": ("JPEG", {"quality": 85}),
    "JPEG optimized": ("JPEG", {"quality": 85, "optimize": True}),
    "JPEG progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "JPEG with restarts": ("JPEG", {"quality": 85, "restart_marker_blocks": 16}),
    "PNG": ("PNG", {}),
    "TIFF LZW": ("TIFF", {"compression": "tiff_lzw"}),
    "TIFF deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF JPEG": ("TIFF", {"compression": "jpeg"}),
    "GIF": ("GIF", {}),
    "WebP lossless": ("WEBP", {"lossless": True}),
    "WebP lossy": ("WEBP", {"quality": 85}),
    "HEIC": ("HEIF", {"quality": 85}),
    "AVIF": ("AVIF", {"quality": 85}),
    "JPEG 2000": ("JPEG2000", {}),
}
DAMAGE: dict[str, Callable[[bytes, int, int, random.Random], bytes]] = {
    "hole": lambda whole, start, size, dice: whole[:start] + bytes(size) + whole[start + size :],
    "noise": lambda whole, start, size, dice: whole[:start] + dice.randbytes(size) + whole[start + size :],
    "early end": lambda whole, start, size, dice: whole[:start],
}
REFUSED, EQUAL, WRONG = range(3)


def textured(width: int, height: int, seed: int) -> PILImage.Image:
    """An image with as much detail as a photo: noise of several sizes."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(
            PILImage.fromarray(rng.integers(0, 256, (height // s, width // s, 3)).astype(np.uint8)).resize(
                (width, height), PILImage.Resampling.BICUBIC
            ),
            float,
        )
        for s in (2, 8, 40)
    ]
    return PILImage.fromarray((0.2 * layers[0] + 0.3 * layers[1] + 0.5 * layers[2]).astype(np.uint8))


def main(count: int, seed: int, encode: Callable[..., bytes], can_write: Callable[[str], bool]) -> dict[str, Any]:
    """Damage `count` images, one format after the other."""
    warnings.simplefilter("ignore")
    dice = random.Random(seed)
    formats = {name: form for name, form in FORMATS.items() if can_write(form[0])}
    wholes = {
        name: [encode(textured(480, 360, n), kind, **options) for n in range(3)]
        for name, (kind, options) in formats.items()
    }
    pixels = {name: [np.asarray(open_rgb(whole)) for whole in some] for name, some in wholes.items()}
    results: dict[str, dict[str, list[int]]] = {name: defaultdict(lambda: [0, 0, 0]) for name in formats}
    for index in range(count):
        name = list(formats)[index % len(formats)]
        which, size = dice.randrange(3), dice.choice(SIZES)
        whole = wholes[name][which]
        start = dice.randrange(len(whole) // 5, len(whole) * 4 // 5)
        size = min(size, len(whole) * 9 // 10 - start)
        damage = dice.choice(tuple(DAMAGE))
        results[name][damage][judge(DAMAGE[damage](whole, start, size, dice), pixels[name][which])] += 1
    return {name: dict(by_damage) for name, by_damage in results.items()}


def judge(content: bytes, expected: Any) -> int:
    try:
        found = np.asarray(open_rgb(content))
    except ImageError:
        return REFUSED
    return EQUAL if found.shape == expected.shape and (found == expected).all() else WRONG


if __name__ == "__main__":
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from conftest import can_write, encode

    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]), encode, can_write)))
