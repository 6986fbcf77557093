"""JPEGs on their way to the GPU workers, first come, first served."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.images.gpu.jpeg import GpuJpeg


class JpegQueue:
    """A queue that several workers share; bounded by its callers, each of which waits for its own JPEG.

    Args:
        max_batch: most JPEGs that one worker takes at once.
    """

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._waiting: deque[GpuJpeg] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._workers = 0
        self._lost = ""  # why no worker is left

    def register_worker(self) -> None:
        """Count one more worker that takes from here."""
        with self._changed:
            self._workers += 1

    def unregister_worker(self, jpegs: Sequence[GpuJpeg], reason: str) -> bool:
        """Give a failed worker's JPEGs to the others; returns False, and fails whatever waits, if there are none."""
        with self._changed:
            self._waiting.extendleft(reversed(jpegs))
            self._workers -= 1
            if not self._workers:
                self._lost = f"no GPU decodes any more ({reason}): rerun the same command to resume, or --decode cpu"
            while self._lost and self._waiting:
                self._waiting.popleft().result.set_exception(BackendError(self._lost))
            self._changed.notify_all()
            return not self._lost

    def put(self, jpeg: GpuJpeg) -> None:
        """Add one JPEG.

        Raises:
            BackendError: if no worker is left to take it.
        """
        with self._changed:
            if self._lost or self._is_closed:
                raise BackendError(self._lost or "the GPU decoder is closed")
            self._waiting.append(jpeg)
            self._changed.notify()

    def put_back(self, jpegs: Sequence[GpuJpeg]) -> None:
        """Return JPEGs to the front after a worker failed with them."""
        with self._changed:
            self._waiting.extendleft(reversed(jpegs))
            self._changed.notify()

    def take(self, max_pixels: int) -> list[GpuJpeg]:
        """Wait for JPEGs and take up to `max_pixels` of them, at least one; none once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            taken: list[GpuJpeg] = []
            while self._waiting and self._waiting[0].pixels <= max_pixels and len(taken) < self._max_batch:
                taken.append(self._waiting.popleft())
                max_pixels -= taken[-1].pixels
            return taken

    def close(self) -> None:
        """Let the workers end once the queue is empty."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
