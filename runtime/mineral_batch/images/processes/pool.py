"""Decoding in processes, for engines that take more images than one interpreter can decode.

Threads of one interpreter share its lock: header parsing, EXIF and bookkeeping limit them to some 1,300 images a second
however many cores there are. Processes do not share it. Work is handed over in pieces of several images, pixels come
back through shared memory, and a process that dies costs at most the image it died of.

Needs POSIX (file descriptors that a child inherits); `is_supported` tells.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING

from mineral_batch.errors import BackendError
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.images.processes.shared_memory import MAX_PROCESSES, SharedMemory
from mineral_batch.images.processes.supervisor import Supervisor
from mineral_batch.images.processes.task import Answered, Task
from mineral_batch.images.processes.worker import Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Failure, Pixels, Source

#: Images that are handed to a process at once: enough that the hand-over costs little, few enough to share them evenly.
PIECE = 8
#: Seconds without progress on one image after which its process is ended.
SECONDS_PER_IMAGE = 60.0
# Pieces that a process has at a time: one to work on and one to begin with when that is done.
_SENT_AHEAD = 2


def is_supported() -> bool:
    """Whether this system can share memory with child processes by an inherited file descriptor."""
    return os.name == "posix"


class DecodeProcesses:
    """Processes that decode into shared memory; safe from several threads.

    Args:
        spec: the model's input.
        exact: see `images.decode.load_image`.
        keep_damaged, max_pixels: see `images.decode.decode_image`.
        count: how many processes.
        seconds_per_image: after which a process that does not finish an image is ended.

    Raises:
        BackendError: if a process does not start.
    """

    def __init__(
        self,
        spec: InputSpec,
        *,
        exact: bool = False,
        keep_damaged: bool = False,
        max_pixels: int = MAX_PIXELS,
        count: int,
        seconds_per_image: float = SECONDS_PER_IMAGE,
    ) -> None:
        if not 1 <= count <= MAX_PROCESSES:
            raise BackendError(f"{count} decode processes: 1 to {MAX_PROCESSES} are possible")
        self.count = count
        self._shape = (spec.height, spec.width, 3)
        self._memory = SharedMemory()
        self._queue: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._workers = [
            Supervisor(
                Setup(self._memory.descriptor, index, count, spec, exact, keep_damaged, max_pixels),
                self._memory,
                seconds_per_image,
            )
            for index in range(count)
        ]
        self._threads = [threading.Thread(target=self._serve, args=[w], name="decode-process") for w in self._workers]
        for thread in self._threads:
            thread.start()

    def buffer(self, images: int, prepare: Callable[[Pixels], object] | None = None) -> Pixels:
        """Room for a batch in the shared memory: (images, H, W, 3) uint8. Give it back with `release`.

        Args:
            images: at most so many.
            prepare: called with memory that is used for the first time; a GPU engine page-locks it.
        """
        pixels, is_new = self._memory.take((images, *self._shape))
        if is_new and prepare is not None:
            prepare(pixels)
        return pixels

    def release(self, pixels: Pixels) -> None:
        """Let a buffer be used for another batch."""
        self._memory.give_back(pixels)

    def fill(
        self, pixels: Pixels, sources: Sequence[Source | Failure], *, with_exif: bool = False
    ) -> list[Future[Answered]]:
        """Decode sources into the first rows of a buffer, in pieces; a failed image's row is black.

        Args:
            pixels: (images, H, W, 3) uint8, from `buffer`.
            sources: at most as many as the buffer has rows; failures are passed on.
            with_exif: see `images.decode.decode_image`.

        Returns:
            Futures that give, one after the other, the results of all sources in order.
        """
        tasks = [
            Task(pixels, first, sources[first : first + PIECE], with_exif) for first in range(0, len(sources), PIECE)
        ]
        for task in tasks:
            self._queue.put(task)
        return [task.future for task in tasks]

    def close(self) -> None:
        """End the processes; work that was handed over is finished first."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._memory.close()

    def _serve(self, worker: Supervisor) -> None:
        """Keep one process busy: its next piece is sent before the answer to the last one is read."""
        is_open = True
        while is_open or worker.sent:
            while is_open and len(worker.sent) < _SENT_AHEAD:
                try:
                    task = self._queue.get(block=not worker.sent)
                except queue.Empty:
                    break
                is_open = task is not None
                if task is not None and task.future.set_running_or_notify_cancel():
                    worker.submit(task)
            if worker.sent:
                worker.finish()
        worker.close()
