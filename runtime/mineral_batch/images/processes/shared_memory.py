"""Memory that decode processes share with the process that owns the engine."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.types import Pixels

#: The first page holds two counters for each process: the images of its piece that it has finished, and a heartbeat
#: that goes on while it waits for memory.
COUNTERS = mmap.ALLOCATIONGRANULARITY
MAX_PROCESSES = COUNTERS // 8


class SharedMemory:
    """One anonymous file that grows, divided into buffers; its first page holds the processes' counters."""

    def __init__(self) -> None:
        self.descriptor = _anonymous_file()
        self._size = COUNTERS
        os.truncate(self.descriptor, self._size)
        self.counters = map_counters(self.descriptor)
        self._offsets: dict[int, tuple[int, Pixels]] = {}
        self._free: list[Pixels] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> tuple[Pixels, bool]:
        """A buffer of uint8 that nobody uses, and whether it is new."""
        with self._lock:
            for index, pixels in enumerate(self._free):
                if pixels.shape == shape:
                    return self._free.pop(index), False
            return self._grow(shape), True

    def _grow(self, shape: tuple[int, ...]) -> Pixels:
        length, offset = int(np.prod(shape)), self._size
        end = offset + length
        self._size = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.truncate(self.descriptor, self._size)
        pixels: Pixels = np.frombuffer(mmap.mmap(self.descriptor, length, offset=offset), np.uint8).reshape(shape)
        self._offsets[pixels.ctypes.data] = (offset, pixels)
        return pixels

    def offset(self, pixels: Pixels) -> int:
        """Where a buffer lies, bytes."""
        return self._offsets[pixels.ctypes.data][0]

    def give_back(self, pixels: Pixels) -> None:
        """Let a buffer be taken again."""
        with self._lock:
            self._free.append(pixels)

    def close(self) -> None:
        """Close the file; buffers stay readable as long as they are held."""
        os.close(self.descriptor)


def _anonymous_file() -> int:
    """Open a file without a name that children inherit, in memory where possible: /dev/shm is often too small."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mineral-batch")
    descriptor, name = tempfile.mkstemp(prefix="mineral-batch-")
    os.unlink(name)  # noqa: PTH108 - the descriptor is all that is needed
    return descriptor


def map_counters(descriptor: int) -> NDArray[np.uint32]:
    """(MAX_PROCESSES, 2) finished images and heartbeat, shared by all who map them."""
    return np.frombuffer(mmap.mmap(descriptor, COUNTERS), np.uint32).reshape(-1, 2)
