"""Ctrl-C and SIGTERM: finish the step, save the state, end; once more to end at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any, Self

_STDERR = 2
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class RunStopped(KeyboardInterrupt):
    """A run was stopped by a signal after its state was saved.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignal:
    """Within, the first signal sets `number` and the second raises KeyboardInterrupt.

    Args:
        says: whether it prints what will happen; of several processes one does.

    Attributes:
        number: of the signal that came, None if none did.
    """

    def __init__(self, says: bool = True) -> None:
        self.number: int | None = None
        self._says = says
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise if a signal came.

        Raises:
            RunStopped: with the signal's number.
        """
        if self.number is not None:
            raise RunStopped(self.number)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number
        if not self._says:
            return
        # Not print: a signal may arrive in the middle of one.
        with suppress(OSError):
            os.write(_STDERR, b"\nfinishing the step and saving; press again to stop at once\n")


def ignore_in_worker(_: int) -> None:
    """Let the main process decide: a terminal sends Ctrl-C to the processes that load images, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
