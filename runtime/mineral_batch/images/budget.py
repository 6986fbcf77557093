"""How much memory the images being decoded may take together: large ones wait for each other instead of failing."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from mineral_batch.system import available_memory, return_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from PIL import Image as PILImage

# Images that take less do not wait: it is what ordinary photos take.
_ALWAYS = 64 * 2**20
# Of the memory that is available when the first large image comes; where that is not known, a machine of 4 GiB.
_SHARE = 0.5
_UNKNOWN = 4 * 2**30
# Decoded samples and the RGB image made of them; Pillow takes 4 bytes for each pixel of most modes.
_BYTES_PER_PIXEL = 8
# Formats whose decoders hold several copies meanwhile (WebP: two canvases of an animation, and their bytes).
_COPIES = {"WEBP": 16, "AVIF": 12, "HEIF": 12, "JPEG2000": 20}
# Progressive JPEGs: the coefficients of the whole image, two bytes for each of up to three components.
_COEFFICIENTS = 6


class MemoryBudget:
    """A number of bytes that several threads share, first come, first served.

    Args:
        total: bytes. An image that takes more than that is decoded alone.
        alone: held meanwhile, where several processes share the machine's memory.
        most: bytes that there are. An image that takes more than that is not decoded: the system would end the process.
    """

    def __init__(
        self,
        total: int,
        alone: Callable[[], AbstractContextManager[None]] = nullcontext,
        most: int | None = None,
    ) -> None:
        self.total = total
        self._alone = alone
        self._most = most
        self._free = total
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes are free, and hold them during the block.

        Raises:
            MemoryError: if there are not so many.
        """
        if size < _ALWAYS:
            yield
            return
        if self._most is not None and size > self._most:
            raise MemoryError
        is_too_large = size > self.total
        size = min(size, self.total)
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self._waiting[0] is ticket and self._free >= size)
            self._waiting.popleft()
            self._free -= size
            self._changed.notify_all()
        # glibc keeps what a thread has freed for that thread: with 16 of them, 16 images that are gone.
        return_freed_memory()
        try:
            with self._alone() if is_too_large else nullcontext():
                yield
        finally:
            with self._changed:
                self._free += size
                self._changed.notify_all()


# This process's budget, once it is known.
_own: list[MemoryBudget] = []
_lock = threading.Lock()


def decode_budget() -> MemoryBudget:
    """Return the budget of this process."""
    with _lock:
        if not _own:
            _own.append(MemoryBudget(_share_of_memory(1), most=available_memory()))
        return _own[0]


def share_decode_budget(processes: int, alone: Callable[[], AbstractContextManager[None]]) -> None:
    """Make this process's budget its share of the machine's.

    Args:
        processes: how many decode side by side.
        alone: lets one of them at a time decode an image that takes more than its share.
    """
    with _lock:
        _own[:] = [MemoryBudget(_share_of_memory(processes), alone, available_memory())]


def _share_of_memory(processes: int) -> int:
    available = available_memory() or _UNKNOWN
    return max(_ALWAYS, int(available * _SHARE) // processes)


def decoded_size(image: PILImage.Image, full: tuple[int, int]) -> int:
    """Estimate the bytes that decoding an open image takes.

    Args:
        image: its size is the one that it is decoded to.
        full: (width, height) of the file.
    """
    size = image.width * image.height * _COPIES.get(image.format or "", _BYTES_PER_PIXEL)
    if image.info.get("progressive") or image.info.get("progression"):
        size += full[0] * full[1] * _COEFFICIENTS
    return size
