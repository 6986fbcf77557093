"""Samples of any number format -> 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import ImageError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from mineral_batch.types import Pixels

UNSIGNED, SIGNED, FLOAT = 1, 2, 3
# Samples that are scaled at a time.
_BAND = 4_000_000


@dataclass(frozen=True)
class SampleFormat:
    """How samples are stored.

    Attributes:
        kind: `UNSIGNED`, `SIGNED` or `FLOAT`, as the tag SampleFormat has it.
        bits: per sample.
        order: `<` or `>`.
        is_inverted: whether zero is white.
    """

    kind: int
    bits: int
    order: str
    is_inverted: bool = False

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """NumPy's type; None for samples that are packed into bits, or unknown."""
        if self.bits in (8, 16, 32, 64) and self.kind in (UNSIGNED, SIGNED, FLOAT) and (self.kind, self.bits) != (3, 8):
            return np.dtype(f"{self.order}{'uif'[self.kind - 1]}{self.bits // 8}")
        return None

    @property
    def is_packed(self) -> bool:
        """Whether the samples are packed into fewer than 16 bits."""
        return self.kind == UNSIGNED and self.bits < 16 and self.bits != 8

    def unpack(self, data: bytes, rows: int, samples: int) -> NDArray[Any]:
        """Return (rows, samples) of what may be less data, in which case only whole rows are returned."""
        row_bytes = -(-samples * self.bits // 8)
        rows = min(rows, len(data) // row_bytes)
        if self.dtype is not None:
            return np.frombuffer(data, self.dtype, rows * samples).reshape(rows, samples)
        packed = np.frombuffer(data, np.uint8, rows * row_bytes).reshape(rows, row_bytes)
        values = np.empty((rows, samples), np.uint16)
        weights = 1 << np.arange(self.bits - 1, -1, -1)
        for row in range(rows):  # one at a time, because bits take eight times the memory
            bits = np.unpackbits(packed[row], count=samples * self.bits).reshape(samples, self.bits)
            values[row] = bits @ weights
        return values

    @property
    def depends_on_maximum(self) -> bool:
        """Whether the scale of the samples depends on their maximum over the whole image."""
        return self.kind == FLOAT or self.bits > 16

    def to_8_bits(self, values: NDArray[Any]) -> Pixels:
        """Scale samples to uint8, with zero as black.

        Integers are on the scale of their bits, the negative ones black; but those of 32 bits on the 16-bit scale if
        none exceeds it, as many programs store them. Floats are on the scale 0..1, or, where they exceed it, up to
        their maximum.
        """
        factor = 255.0 / self._top(values)
        pixels = np.empty(values.shape, np.uint8)
        rows = max(1, _BAND // max(1, values[:1].size))
        for top in range(0, len(values), rows):  # some rows at a time, because floats take eight times the memory
            kind: Any = np.float32 if self.bits <= 16 else np.float64
            scaled = values[top : top + rows].astype(kind)
            scaled *= factor
            if self.is_inverted:
                np.subtract(255.0, scaled, out=scaled)
            scaled += 0.5
            pixels[top : top + rows] = np.clip(scaled, 0, 255, out=scaled)
        return pixels

    def _top(self, values: NDArray[Any]) -> float:
        """Return the value of white."""
        if self.kind == FLOAT:
            top = float(values.max(initial=0))  # not a number if any value is none
            if not (np.isfinite(top) and np.isfinite(values.min(initial=0))):
                raise ImageError("contains values that are not numbers")
            return max(1.0, top)
        if self.bits > 16 and values.max(initial=0) <= 65535:
            return 65535.0
        return float(2 ** (self.bits - (self.kind == SIGNED)) - 1)
