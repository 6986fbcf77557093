"""Pillow's antialiased resize on a GPU: its weights from here, its integer arithmetic in `resample.cu`.

Along either axis the answer is Pillow's to the last bit. The width comes first here, then the height; Pillow 13 begins
with the height where that is less work, which makes a difference of one level here and there.

A picture of 12 megapixels that a GPU has decoded is 36 MB: brought to the processor and resized there it would cost
about as much as decoding it there. So it is resized where it is, and what the model takes comes back.
"""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mineral_batch.backends.cuda_driver import Context, Memory, Stream

#: The longest side of a picture that is taken, pixels: it decides how much memory is set aside.
MAX_SIDE = 16384
_PRECISION_BITS = 22
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # on either side, in pixels of the smaller picture
# Distinct sizes of pictures whose weights are remembered: a folder has those of a few cameras.
_REMEMBERED = 64

Table = NDArray[np.int32]


@lru_cache(maxsize=_REMEMBERED)
def table(size_in: int, span: tuple[float, float], size_out: int, interpolation: str) -> Table:
    """What each position along one axis is made of, as Pillow's `precompute_coeffs` has it.

    Args:
        size_in: of the picture along the axis.
        span: the part of it that is resized.
        size_out: what it is resized to.
        interpolation: `bilinear` or `bicubic`.

    Returns:
        (size_out, 2 + taps) int32: the first position, how many count, their weights times 2^22.
    """
    first, last = map(np.float32, span)
    scale = float(last - first) / size_out
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    taps = math.ceil(support) * 2 + 1
    centre = float(first) + (np.arange(size_out) + 0.5) * scale
    start = np.maximum(np.trunc(centre - support + 0.5), 0)
    length = np.minimum(np.trunc(centre + support + 0.5), size_in) - start
    tap = np.arange(taps)[None]  # (1, taps)
    weights = _filtered((tap + start[:, None] - centre[:, None] + 0.5) * (1.0 / stretch), interpolation)
    weights[tap >= length[:, None]] = 0.0
    weights /= weights.cumsum(axis=1)[:, -1:]
    fixed = np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights))
    made: Table = np.ascontiguousarray(np.column_stack([start, length, fixed]).astype(np.int32))
    made.flags.writeable = False
    return made


def _filtered(x: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    """Pillow's filters; its bicubic one has a = -0.5."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


class Resizer:
    """Resizes pictures that lie on a GPU, one after the other on one stream; used inside `context.current()`.

    Args:
        context: of the GPU.
        stream: that everything is enqueued on.
        largest: longest side that a picture is resized to, pixels.
    """

    def __init__(self, context: Context, stream: Stream, largest: int) -> None:
        self._context = context
        self._stream = stream
        code = resources.files("mineral_batch").joinpath("resample.ptx").read_text(encoding="ascii")
        self._kernel = context.kernel(code, "resample")
        self._narrow = context.allocate(MAX_SIDE * largest * 3)
        self._tables = [context.allocate(_table_bytes(largest)) for _ in range(2)]

    def enqueue(
        self,
        pixels: int,
        size: tuple[int, int],
        box: tuple[float, float, float, float],
        target: tuple[int, int],
        interpolation: str,
        result: int,
    ) -> None:
        """Start to resize a part of a picture.

        Args:
            pixels: address of (height, width, 3) uint8.
            size: (width, height), neither above `MAX_SIDE`.
            box: (left, top, right, bottom) of the part.
            target: (width, height) of the result.
            interpolation: `bilinear` or `bicubic`.
            result: address of (height, width, 3) uint8.
        """
        (width, height), (new_width, new_height) = size, target
        across = table(width, (box[0], box[2]), new_width, interpolation)
        down = table(height, (box[1], box[3]), new_height, interpolation)
        narrow = int(self._narrow)
        self._along(self._tables[0], across, pixels, narrow, width, 3, height * new_width * 3)
        self._along(self._tables[1], down, narrow, result, height, new_width * 3, new_height * new_width * 3)

    def _along(
        self, room: Memory, weights: Table, given: int, result: int, size_in: int, inner: int, count: int
    ) -> None:
        """One axis; the stream keeps the table as it is until the kernel before has ended."""
        self._context.to_gpu(room, weights, self._stream)
        size_out, columns = weights.shape
        arguments: list[Any] = [ctypes.c_uint64(address) for address in (given, result, int(room))]
        arguments += [ctypes.c_int(number) for number in (columns - 2, size_in, size_out, inner)]
        self._kernel.launch(count, [*arguments, ctypes.c_longlong(count)], self._stream)

    def close(self) -> None:
        """Give back the memory and the kernel; only when nothing runs on the stream any more."""
        for memory in (self._narrow, *self._tables):
            memory.free()
        self._kernel.close()


def _table_bytes(largest: int) -> int:
    """Room for every table: there are at most twice `MAX_SIDE` weights for each pixel of support, and a few more."""
    return 4 * (2 * math.ceil(max(_SUPPORT.values())) * (MAX_SIDE + largest) + 5 * largest)
