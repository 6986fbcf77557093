"""The photographs that a quantizer calibrates with, and those of the same folder that are held out to compare on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_export.verify.samples import Samples, decode_in_chunks, image_files, spread

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels

#: Fewer images do not show a layer's range of values: INT8 of one image passed the budget on synthetic images and then
#: failed on real ones.
MIN_CALIBRATION = 16
#: At least one in five photographs is held out, at most this many.
MAX_HELD_OUT = 64
_SHARE_HELD_OUT = 5


@dataclass(frozen=True)
class CalibrationImages:
    """Decoded photographs of one folder.

    Attributes:
        pixels: (N, H, W, 3) uint8 to calibrate with.
        held_out: (M, H, W, 3) uint8 that the quantizer never sees; M is 0 if none were wanted.
        folder: where they come from.
    """

    pixels: Pixels
    held_out: Pixels
    folder: Path

    def samples(self, count: int | None = None) -> Samples:
        """Return the held-out images to compare on, at most `count`."""
        return Samples.of(self.held_out[:count], f"photographs of {self.folder}, held out of calibration")


def load_calibration(folder: Path, spec: InputSpec, count: int, *, hold_out: bool) -> CalibrationImages:
    """Decode photographs spread evenly over a folder.

    Args:
        folder: folder or file.
        spec: the model's input.
        count: calibrate with at most so many.
        hold_out: keep some of the photographs to compare on.

    Raises:
        DataError: if too few can be read.
    """
    paths = image_files([folder])
    held = max(1, min(MAX_HELD_OUT, count // _SHARE_HELD_OUT, len(paths) // _SHARE_HELD_OUT)) if hold_out else 0
    chosen = spread(paths, count + held)
    apart = set(spread(range(len(chosen)), held)) if held else set()
    used = _decode([path for place, path in enumerate(chosen) if place not in apart], spec)
    held_out = _decode([path for place, path in enumerate(chosen) if place in apart], spec)
    if len(used) < MIN_CALIBRATION or (hold_out and not len(held_out)):
        apart_words = f" besides {len(held_out)} held out to compare on" if hold_out else ""
        raise DataError(
            f"{folder} has {len(used)} readable photographs to calibrate with{apart_words}; quantization needs at "
            f"least {MIN_CALIBRATION}: add photographs like those that the model will see"
        )
    return CalibrationImages(used, held_out, folder)


def _decode(paths: Sequence[Path], spec: InputSpec) -> Pixels:
    chunks = [pixels for _, pixels in decode_in_chunks(paths, spec)]
    return np.concatenate(chunks) if chunks else np.zeros((0, *spec.shape), np.uint8)
