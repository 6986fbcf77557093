"""The lock between CUDA graph captures and everything else that uses CUDA in this process.

ONNX Runtime captures CUDA graphs in CUDA's global mode (core/providers/cuda/cuda_graph.cc). Until the capture ends, an
allocation, a release or a plain copy in any other thread of the process fails, whichever GPU it is for, and spoils the
capture. So a session that may capture holds the lock exclusively, and everything else holds it shared.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class CaptureLock:
    """A readers-writer lock that prefers writers, and postpones what finalizers do until it is safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._sharers = self._waiting = 0
        self._is_exclusive = False
        self._capturing: set[int] = set()  # threads
        self._postponed: list[Callable[[], None]] = []

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other sharers."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_exclusive or self._waiting))
            self._sharers += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._is_exclusive or self._sharers))
            self._waiting -= 1
            self._is_exclusive = True
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()
            self._run_postponed()

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """This thread captures a graph in CUDA's thread-local mode; whoever calls it holds the lock.

        Python's garbage collector may run in this thread meanwhile, and a finalizer that freed memory would spoil the
        capture: `run_or_postpone` waits for the end of the block.
        """
        thread = threading.get_ident()
        with self._changed:
            self._capturing.add(thread)
        try:
            yield
        finally:
            with self._changed:
                self._capturing.discard(thread)
            self._run_postponed()

    def run_or_postpone(self, work: Callable[[], None]) -> None:
        """Run `work` shared: now, or when the capture that it would spoil has ended. Never waits, for finalizers."""
        with self._changed:
            if self._is_exclusive or threading.get_ident() in self._capturing:
                self._postponed.append(work)
                return
            self._sharers += 1
        try:
            work()
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._sharers -= 1
            self._changed.notify_all()

    def _run_postponed(self) -> None:
        with self._changed:
            postponed, self._postponed = self._postponed, []
        for work in postponed:
            self.run_or_postpone(work)


#: The process's one.
capture_lock = CaptureLock()
