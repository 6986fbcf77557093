"""Pillow's antialiased resize on a GPU: its weights from here, its integer arithmetic in `resample.cu`.

Along either axis the answer is Pillow's to the last bit. The width comes first here, then the height; Pillow 13 begins
with the height where that is less work, which makes a difference of one level here and there.

A picture of 12 megapixels that a GPU has decoded is 36 MB: brought to the processor and resized there it would cost
about as much as decoding it there. So it is resized where it is, and what the model takes comes back.
"""

from __future__ import annotations

import ctypes
import math
from contextlib import ExitStack
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mineral_batch.cuda.device import Context, Memory, Stream

#: The longest side of a picture that is taken, pixels: it decides how much memory is set aside.
MAX_SIDE = 16384
_PRECISION_BITS = 22
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # on either side, in pixels of the smaller picture
# Tables of weights that are remembered, two for each size of a picture: a folder has those of a few cameras.
_REMEMBERED = 64

Table = NDArray[np.int32]
#: What a table depends on; see `table`.
_Axis = tuple[int, tuple[float, float], int, str]


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
        self._tables: dict[_Axis, tuple[Memory, int]] = {}
        code = resources.files("mineral_batch.images.gpu").joinpath("resample.ptx").read_text(encoding="ascii")
        with ExitStack() as held:
            self._kernel = context.kernel(code, "resample")
            held.callback(self._kernel.close)
            self._narrow = _allocated(context, MAX_SIDE * largest * 3, held)
            self._unused = [_allocated(context, _table_bytes(largest), held) for _ in range(_REMEMBERED)]
            self._held = held.pop_all()

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
        across = width, (box[0], box[2]), new_width, interpolation
        down = height, (box[1], box[3]), new_height, interpolation
        narrow = int(self._narrow)
        self._along(across, pixels, narrow, 3, height * new_width * 3)
        self._along(down, narrow, result, new_width * 3, new_height * new_width * 3)

    def _along(self, axis: _Axis, given: int, result: int, inner: int, count: int) -> None:
        """Start to resize along one axis, `inner` values apart: `count` values."""
        room, taps = self._weights(axis)
        size_in, _, size_out, _ = axis
        arguments: list[Any] = [ctypes.c_uint64(address) for address in (given, result, int(room))]
        arguments += [ctypes.c_int(number) for number in (taps, size_in, size_out, inner)]
        self._kernel.launch(count, [*arguments, ctypes.c_longlong(count)], self._stream)

    def _weights(self, axis: _Axis) -> tuple[Memory, int]:
        """Where on the GPU the axis's table is, and its taps; brought there unless it is one of the last ones used.

        A copy from ordinary memory waits for all that is on the stream, so a table is not copied for each picture. It
        may overwrite one that is still to be read: the stream keeps that as it is until the kernels before have ended.
        """
        found = self._tables.pop(axis, None)
        if found is None:
            room = self._unused.pop() if self._unused else self._tables.pop(next(iter(self._tables)))[0]
            weights = table(*axis)
            self._context.to_gpu(room, weights, self._stream)
            found = room, weights.shape[1] - 2
        self._tables[axis] = found  # behind all others: the first one is the one that was not used for longest
        return found

    def close(self) -> None:
        """Give back the memory and the kernel, whatever fails of it; only when nothing runs on the stream any more."""
        self._held.close()


def _allocated(context: Context, size: int, held: ExitStack) -> Memory:
    memory = context.allocate(size)
    held.callback(memory.free)
    return memory


def _table_bytes(largest: int) -> int:
    """Room for every table: there are at most twice `MAX_SIDE` weights for each pixel of support, and a few more."""
    return 4 * (2 * math.ceil(max(_SUPPORT.values())) * (MAX_SIDE + largest) + 5 * largest)
