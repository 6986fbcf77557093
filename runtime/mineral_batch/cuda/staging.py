"""Places on a GPU into which the next batch is copied while the engine works on the last one.

    a caller's thread:      copy batch k + 1 into its place | .......... wait ............ | copy batch k + 3 ...
    the engine's thread:                     compute batch k | place -> input, compute batch k + 1 | ...

The engine keeps the one input that its CUDA graph was captured with. From a place to there is a copy inside the GPU's
own memory, which takes about a hundredth of the time of the one over the bus.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from math import prod
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.cuda.device import Context, DriverError, gate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.cuda.device import Gpu
    from mineral_batch.types import Pixels

#: One place is filled while the engine reads from the other.
PLACES = 2


class Uploads:
    """Two places for batches on one GPU, each with a stream of its own, which waits for no other.

    Args:
        gpu: where.
        shape: (B, H, W, 3) of the largest batch.

    Raises:
        DriverError: if the driver refuses; so does everything here.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, ...]) -> None:
        self.pictures = shape[0]
        self._context = Context(gpu)
        self._places: list[Upload] = []
        self._free: SimpleQueue[Upload | None] = SimpleQueue()  # None once they are given back
        try:
            with gate.shared(), self._context.current():
                for _ in range(PLACES):
                    self._places.append(Upload(self._context, shape))
        except BaseException:
            with suppress(DriverError):  # what made it fail is told
                self._give_back()
            raise
        for place in self._places:
            self._free.put(place)

    @contextmanager
    def of(self, pixels: Pixels) -> Iterator[Upload]:
        """Up to B pictures (N, H, W, 3), on the GPU inside the block; waits for a free place, and for the copy."""
        place = self._free.get()
        try:
            if place is None:
                raise DriverError("the memory on the GPU has been given back")
            place.fill(pixels)
            yield place
        finally:
            self._free.put(place)

    def is_well(self) -> bool:
        """Whether the GPU still does what it is told: what another library broke in its context fails here, too."""
        try:
            with self._context.current():
                for place in self._places:
                    place.wait()
        except DriverError:
            return False
        return True

    def close(self) -> None:
        """Give the memory back, once nobody is inside `of`; twice does no harm."""
        if not self._places:
            return
        for _ in self._places:
            self._free.get()
        self._free.put(None)
        self._give_back()

    def _give_back(self) -> None:
        places, self._places = self._places, []
        try:
            with gate.shared(), self._context.current():
                for place in places:
                    place.close()
        finally:
            self._context.release()


class Upload:
    """Pictures (N, H, W, 3) uint8 in one place of a GPU's memory; `len()` is N."""

    def __init__(self, context: Context, shape: tuple[int, ...]) -> None:
        self._context = context
        self._size = prod(shape[1:])  # bytes of a picture
        self._memory = context.allocate(prod(shape))  # first, because this is what may fail
        self._stream = context.stream()
        self._pictures = 0

    def __len__(self) -> int:
        return self._pictures

    def fill(self, pixels: Pixels) -> None:
        """Copy them here. Done when it returns, also after a failure: the caller's memory is no longer read."""
        whole = np.ascontiguousarray(pixels)
        with gate.shared(), self._context.current():
            try:
                self._context.to_gpu(self._memory, whole, self._stream)
            finally:
                self.wait()
        self._pictures = len(whole)

    def copy_to(self, address: int, start: int, count: int) -> None:
        """`count` pictures from number `start` on, to an address on the same GPU; done when it returns."""
        source, size = int(self._memory) + start * self._size, count * self._size
        with self._context.current():
            self._context.copy(address, source, size, self._stream)
            self.wait()

    def wait(self) -> None:
        """Until what was started here is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Give the memory and the stream back."""
        self._memory.free()
        self._stream.close()


def is_well(gpu: Gpu) -> bool:
    """The same as `Uploads.is_well`, of a GPU on which there are none."""
    with suppress(DriverError):
        context = Context(gpu)
        try:
            with context.current():
                stream = context.stream()
                stream.synchronize()
                stream.close()
        finally:
            context.release()
        return True
    return False
