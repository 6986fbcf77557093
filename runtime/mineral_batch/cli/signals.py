"""Ctrl-C and SIGTERM: the first asks a run to finish what it has begun, the second ends the process.

What is begun may take long: a thread cannot be ended while it decodes. So the second signal comes by itself after a
while. What is not finished then is done again by the next run.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any, Self

_STDERR = 2
# How long the first signal waits for the images in progress: less than the half minute that cluster schedulers wait.
_SECONDS_TO_FINISH = 20.0
# How long the second signal leaves for saving what is done. An engine may be in a native call that never returns.
_SECONDS_TO_SAVE = 3.0


class Stop:
    """The signals during a run.

    Attributes:
        signal: the signal that came; None as long as none did.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._finished = threading.Event()
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

    def finished(self) -> None:
        """Note that nothing is in progress any more: what is left to do is bounded."""
        self._finished.set()

    def __exit__(self, *_: object) -> None:
        self.finished()
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
            again = b"; press Ctrl-C again to stop at once" if number == signal.SIGINT else b""
            os.write(_STDERR, b"\nFinishing the images in progress" + again + b"\n")
        threading.Thread(target=self._insist, args=(number,), daemon=True, name="insist").start()

    def _insist(self, number: int) -> None:
        """Send the second signal, unless the images in progress are finished before."""
        main = threading.main_thread().ident
        if self._finished.wait(_SECONDS_TO_FINISH) or main is None:
            return
        if hasattr(signal, "pthread_kill"):  # also ends a wait of the main thread's
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)


def _exit_later(code: int) -> None:
    """End the process, whatever its other threads wait for. What is saved is safe; the rest is done again."""
    time.sleep(_SECONDS_TO_SAVE)
    with suppress(OSError):
        os.write(_STDERR, b"Stopped in the middle of a call; rerun the same command to resume.\n")
    os._exit(code)
