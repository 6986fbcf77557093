"""Ctrl-C and SIGTERM: the first asks a run to finish what it has begun, the second ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, Self

_STDERR = 2
# How long the second signal leaves for saving what is done. An engine may be in a native call that never returns.
_SECONDS_TO_SAVE = 3.0


class Stop:
    """The signals during a run.

    Attributes:
        signal: the signal that came; None as long as none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether the run should stop."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        if self.signal is not None:
            threading.Thread(target=_exit_later, args=(128 + number,), daemon=True, name="exit").start()
            raise KeyboardInterrupt
        self.signal = number
        # Not print: a signal may arrive in the middle of one.
        with suppress(OSError):
            os.write(_STDERR, b"\nfinishing the images in flight; press Ctrl-C again to stop at once\n")


def _exit_later(code: int) -> None:
    """End the process, whatever its other threads wait for. What is saved is safe; the rest is done again."""
    time.sleep(_SECONDS_TO_SAVE)
    os._exit(code)
