"""Objects that live in processes of their own: their libraries' threads do not meet, and each one's memory is known."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from mineral_batch.errors import MineralError
from mineral_batch.system import peak_memory_mib
from mineral_bench.process.usage import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType


class IsolatedError(MineralError):
    """What went wrong in the other process, in one line."""


@dataclass(frozen=True)
class Answer:
    """Of one call.

    Attributes:
        value: what the method returned.
        seconds: in the other process, without the way there and back.
        cpu_seconds: that processors worked for it there, its own children included.
        peak_memory_mib: of the other process until then, without its own children.
    """

    value: Any
    seconds: float
    cpu_seconds: float
    peak_memory_mib: float | None


class Isolated:
    """One object in a fresh interpreter; used in a `with` block, at whose end the process ends.

    Args:
        make: makes the object there; it and every argument and result must be picklable.

    Raises:
        IsolatedError: if it cannot be made.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        # Not a daemon: those may not have children, and a DataLoader's workers are children.
        self._process = context.Process(target=_serve, args=(there, make), daemon=False)
        self._process.start()
        there.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Answer:
        """Call one of the object's methods.

        Raises:
            IsolatedError: if it raises, or its process is gone.
        """
        self._here.send((method, arguments))
        return self._receive()

    def work(self, method: str, *arguments: Any) -> float:
        """Call a method and return the processor's seconds, as `mineral_bench.measure.interleave` wants it."""
        return self.call(method, *arguments).cpu_seconds

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Answer:
        try:
            answer = self._here.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            raise IsolatedError(f"its process ended with code {self._process.exitcode}: out of memory?") from None
        if isinstance(answer, str):
            raise IsolatedError(answer)
        assert isinstance(answer, Answer)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    """Make the object and answer calls until the other side closes the pipe."""
    made = _attempt(make)
    pipe.send(made if isinstance(made, str) else Answer(None, made.seconds, made.cpu_seconds, made.peak_memory_mib))
    try:
        while not isinstance(made, str):
            method, arguments = pipe.recv()
            pipe.send(_attempt(getattr(made.value, method), *arguments))
    except (EOFError, ConnectionError):
        return  # the other side has closed the pipe, or is gone


def _attempt(action: Callable[..., Any], *arguments: Any) -> Answer | str:
    start, cpu = time.perf_counter(), cpu_seconds()
    try:
        value = action(*arguments)
    except Exception as error:  # the other process must hear of whatever it was
        words = (str(error).strip().splitlines() or [""])[0]
        return words if isinstance(error, MineralError) else f"{type(error).__name__}: {words}"
    return Answer(value, time.perf_counter() - start, cpu_seconds() - cpu, peak_memory_mib())
