"""Buffers on a GPU into which the next batch is copied while the engine computes the last one.

    a caller's thread:      copy batch k + 1 into its buffer | .......... wait ............ | copy batch k + 3 ...
    the engine's thread:                     compute batch k | buffer -> input, compute batch k + 1 | ...

The engine keeps the one input that its CUDA graph was captured with. The copy from a buffer to that input stays inside
the GPU's own memory and takes about a hundredth of the time of the copy over the bus.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from math import prod
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.core import CoreContext
from mineral_batch.cuda.probe import DriverError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.cuda.interface import Stream
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.types import Pixels

#: One is filled while the engine reads from the other.
COUNT = 2


class StagingBuffers:
    """Two buffers for batches on one GPU, each filled on a stream of its own.

    Args:
        gpu: the GPU.
        shape: (B, H, W, 3) of the largest batch.

    Attributes:
        batch_size: B.
        context: the GPU's.

    Raises:
        DriverError: if cuda-core is not installed or the driver refuses; so does everything here.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...]) -> None:
        self.batch_size = shape[0]
        self.context = CoreContext(gpu)
        self._buffers: list[StagedBatch] = []
        self._free: SimpleQueue[StagedBatch | None] = SimpleQueue()  # None once they are closed
        try:
            with capture_lock.shared(), self.context.current():
                for _ in range(COUNT):
                    self._buffers.append(StagedBatch(self.context, shape))
        except BaseException:
            with suppress(DriverError):  # the first error is the one to report
                self._close_all()
            raise
        for buffer in self._buffers:
            self._free.put(buffer)

    @contextmanager
    def filled_with(self, pixels: Pixels) -> Iterator[StagedBatch]:
        """Copy up to B images (N, H, W, 3) to the GPU for the block; waits for a free buffer and for the copy."""
        buffer = self._free.get()
        try:
            if buffer is None:
                raise DriverError("the memory on the GPU has been freed")
            buffer.fill(pixels)
            yield buffer
        finally:
            self._free.put(buffer)

    def is_well(self) -> bool:
        """Whether the GPU still works: what another library broke in its context fails here too."""
        try:
            with self.context.current():
                for buffer in self._buffers:
                    buffer.wait()
        except DriverError:
            return False
        return True

    def close(self) -> None:
        """Free the memory once nobody is inside `filled_with`; calling it twice does no harm."""
        if not self._buffers:
            return
        for _ in self._buffers:
            self._free.get()
        self._free.put(None)
        self._close_all()

    def _close_all(self) -> None:
        buffers, self._buffers = self._buffers, []
        with capture_lock.shared(), ExitStack() as steps:  # all of them, whatever fails
            steps.callback(self.context.close)
            steps.enter_context(self.context.current())
            for buffer in reversed(buffers):
                steps.callback(buffer.close)


class StagedBatch:
    """Images (N, H, W, 3) uint8 in one buffer on a GPU; `len()` is N."""

    def __init__(self, context: CoreContext, shape: tuple[int, ...]) -> None:
        self._context = context
        self._image_size = prod(shape[1:])  # bytes
        self._memory = context.allocate(prod(shape))  # first, because this is what may fail
        self._stream = context.stream()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def fill(self, pixels: Pixels) -> None:
        """Copy the images here and wait, also after a failure: afterwards the caller's memory is no longer read."""
        pixels = np.ascontiguousarray(pixels)
        with capture_lock.shared(), self._context.current():
            try:
                self._context.to_gpu(self._memory, pixels, self._stream)
            finally:
                self.wait()
        self._count = len(pixels)

    def enqueue_copy(self, address: int, start: int, count: int, stream: Stream) -> None:
        """Enqueue the copy of `count` images from index `start` on to an address on the same GPU."""
        source, size = self._memory.address + start * self._image_size, count * self._image_size
        self._context.copy(address, source, size, stream)

    def wait(self) -> None:
        """Wait for what was enqueued on the buffer's own stream."""
        self._stream.synchronize()

    def close(self) -> None:
        """Free the memory and the stream."""
        self._memory.close()
        self._stream.close()


def is_well(gpu: Gpu) -> bool:
    """Do the same as `StagingBuffers.is_well` for a GPU that has none."""
    with suppress(DriverError):
        context = CoreContext(gpu)
        with context.current():
            stream = context.stream()
            stream.synchronize()
            stream.close()
        context.close()
        return True
    return False
