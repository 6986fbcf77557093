"""Pillow's antialiased resize on a GPU: its weights are computed here, its integer arithmetic is in `resample.cu`.

Along either axis the result equals Pillow's to the last bit. The width comes first here, then the height; Pillow 13
begins with the height where that is less work, which makes a difference of one level here and there.

An image of 12 megapixels is 36 MB: copied to the CPU and resized there it would cost about as much as decoding it
there. So it is resized on the GPU, and only the model's input is copied back.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mineral_batch.cuda.core import CoreContext, CoreMemory, CoreStream

#: The longest side of an image, pixels: it decides how much memory is reserved.
MAX_SIDE = 16384
_PRECISION_BITS = 22
_SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # on either side, in pixels of the smaller image
# Tables of weights in the cache, two for each image size: a folder has those of a few cameras.
_CACHED_TABLES = 64

Table = NDArray[np.int32]
#: What a table depends on; see `table`.
_Axis = tuple[int, tuple[float, float], int, str]


@lru_cache(maxsize=_CACHED_TABLES)
def table(size_in: int, span: tuple[float, float], size_out: int, interpolation: str) -> Table:
    """Compute the weights of each output position along one axis, as Pillow's `precompute_coeffs` does.

    Args:
        size_in: the image's size along the axis.
        span: the part of it that is resized.
        size_out: the size after resizing.
        interpolation: `bilinear` or `bicubic`.

    Returns:
        (size_out, 2 + taps) int32: the first input position, how many positions, their weights times 2^22.
    """
    first, last = map(np.float32, span)
    scale = float(last - first) / size_out
    stretch = max(scale, 1.0)
    support = _SUPPORT[interpolation] * stretch
    taps = math.ceil(support) * 2 + 1
    center = float(first) + (np.arange(size_out) + 0.5) * scale
    start = np.maximum(np.trunc(center - support + 0.5), 0)
    length = np.minimum(np.trunc(center + support + 0.5), size_in) - start
    tap = np.arange(taps)[None]  # (1, taps)
    weights = _filtered((tap + start[:, None] - center[:, None] + 0.5) * (1.0 / stretch), interpolation)
    weights[tap >= length[:, None]] = 0.0
    weights /= weights.cumsum(axis=1)[:, -1:]
    fixed = np.trunc(weights * (1 << _PRECISION_BITS) + np.copysign(0.5, weights))
    table_: Table = np.ascontiguousarray(np.column_stack([start, length, fixed]).astype(np.int32))
    table_.flags.writeable = False
    return table_


def _filtered(x: NDArray[np.float64], interpolation: str) -> NDArray[np.float64]:
    """Evaluate Pillow's filters; its bicubic one has a = -0.5."""
    x = np.abs(x)
    if interpolation == "bilinear":
        return np.maximum(1.0 - x, 0.0)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return np.where(x < 1.0, inner, np.where(x < 2.0, outer, 0.0))


class Resizer:
    """Resizes images in GPU memory, one after the other on one stream; used inside `context.current()`.

    Args:
        context: of the GPU.
        stream: where everything is enqueued.
        largest: longest side of a resized image, pixels.
    """

    def __init__(self, context: CoreContext, stream: CoreStream, largest: int) -> None:
        self._context = context
        self._stream = stream
        self._tables: dict[_Axis, tuple[CoreMemory, int]] = {}
        source, ptx = (resources.files(__package__).joinpath(f"resample.{kind}") for kind in ("cu", "ptx"))
        with ExitStack() as held:
            self._kernel = context.kernel(source.read_text("ascii"), ptx.read_text("ascii"), "resample")
            held.callback(self._kernel.close)
            self._intermediate = _allocated(context, MAX_SIDE * largest * 3, held)
            self._free_tables = [_allocated(context, _table_bytes(largest), held) for _ in range(_CACHED_TABLES)]
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
        """Start to resize a part of an image.

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
        intermediate = self._intermediate.address
        self._along(across, pixels, intermediate, 3, height * new_width * 3)
        self._along(down, intermediate, result, new_width * 3, new_height * new_width * 3)

    def _along(self, axis: _Axis, source: int, result: int, inner: int, count: int) -> None:
        """Start to resize along one axis, `inner` values apart: `count` values."""
        weights, taps = self._weights(axis)
        size_in, _, size_out, _ = axis
        arguments: list[np.generic] = [np.uint64(address) for address in (source, result, weights.address)]
        arguments += [np.int32(number) for number in (taps, size_in, size_out, inner)]
        self._kernel.launch(count, [*arguments, np.int64(count)], self._stream)

    def _weights(self, axis: _Axis) -> tuple[CoreMemory, int]:
        """Return the address of the axis's table on the GPU and its taps; copies it unless it is in the cache.

        A copy from ordinary memory waits for all that is on the stream, so a table is not copied for each image. It
        may overwrite one that earlier kernels still read: the stream runs the copy after them.
        """
        entry = self._tables.pop(axis, None)
        if entry is None:
            memory = self._free_tables.pop() if self._free_tables else self._tables.pop(next(iter(self._tables)))[0]
            weights = table(*axis)
            self._context.to_gpu(memory, weights, self._stream)
            entry = memory, weights.shape[1] - 2
        self._tables[axis] = entry  # moved to the end: the first one is the least recently used
        return entry

    def close(self) -> None:
        """Release the memory and the kernel, even if some of it fails; nothing may run on the stream any more."""
        self._held.close()


def _allocated(context: CoreContext, size: int, held: ExitStack) -> CoreMemory:
    memory = context.allocate(size)
    held.callback(memory.close)
    return memory


def _table_bytes(largest: int) -> int:
    """Return the bytes that hold any table: at most twice `MAX_SIDE` weights per pixel of support, and a few more."""
    return 4 * (2 * math.ceil(max(_SUPPORT.values())) * (MAX_SIDE + largest) + 5 * largest)
