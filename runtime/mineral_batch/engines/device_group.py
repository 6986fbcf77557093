"""Several devices as one backend: each batch goes to the next device that is free."""

from __future__ import annotations

from contextlib import ExitStack
from queue import SimpleQueue
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mineral_batch.engines.base import Backend, EngineInfo
    from mineral_batch.types import Pixels, Probabilities


class DeviceGroup:
    """The same model open on several devices; see `Backend`.

    Its `workers` are those of all devices together. The caller that keeps them busy restores the order of the results,
    as `mineral_batch.pipeline` does.

    Args:
        backends: at least one, all of the same model and engine; closed with the group.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        first = backends[0]
        self.name = first.name
        self.contract = first.contract
        self.batch_size = first.batch_size
        self.workers = sum(backend.workers for backend in backends)
        self._backends = tuple(backends)
        self._idle: SimpleQueue[Backend] = SimpleQueue()
        # Each device once, then each a second time: the first batches of a short run go to different ones.
        for turn in range(max(backend.workers for backend in backends)):
            for backend in backends:
                if turn < backend.workers:
                    self._idle.put(backend)

    @classmethod
    def open(cls, opener: Callable[[int], Backend], devices: Sequence[int]) -> Self:
        """Open the model on each device; if one fails, close those already open and raise its error."""
        backends: list[Backend] = []
        try:
            for device in devices:
                backends.append(opener(device))
        except BaseException:
            _close(backends)
            raise
        return cls(backends)

    @property
    def info(self) -> EngineInfo:
        """The first device's; `device`, `version` and `identity` name all of them."""
        return self._backends[0].info

    @property
    def device(self) -> str:
        """All devices, in words."""
        return " and ".join(backend.device for backend in self._backends)

    @property
    def version(self) -> str:
        """The version on each kind of device: which of them computes an image is chance."""
        return _joined(backend.version for backend in self._backends)

    @property
    def identity(self) -> str:
        """The identity on each kind of device."""
        return _joined(backend.identity for backend in self._backends)

    def buffer(self, count: int) -> Pixels:
        """Room for a batch: page-locked memory serves every device alike."""
        return self._backends[0].buffer(count)

    def pin(self, pixels: Pixels) -> None:
        """Page-lock a caller's buffer, which then serves every device."""
        self._backends[0].pin(pixels)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32; waits for an idle device if more than `workers` threads call."""
        backend = self._idle.get()
        try:
            # A copy, because a device that is idle again may overwrite its answer.
            return backend.infer(pixels).copy()
        finally:
            self._idle.put(backend)

    def close(self) -> None:
        """Close every device's engine, also if one of them fails."""
        _close(self._backends)


def _joined(versions: Iterable[str]) -> str:
    return " and ".join(sorted(set(versions)))


def _close(backends: Sequence[Backend]) -> None:
    with ExitStack() as stack:
        for backend in backends:
            stack.callback(backend.close)
