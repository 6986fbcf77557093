"""Objects in processes of their own: their libraries' threads do not interfere, and the memory of each is known."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from mineral_batch.errors import MineralError
from mineral_batch.system import peak_memory_mib
from mineral_bench.process.usage import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection
    from types import TracebackType


class IsolatedError(MineralError):
    """An error of the other process, in one line."""


@dataclass(frozen=True)
class Reply:
    """The result of one call.

    Attributes:
        value: what the method returned.
        seconds: in the other process, without the transfer.
        cpu_seconds: CPU time there, child processes included.
        own_cpu_seconds: CPU time there, without child processes.
        peak_memory_mib: of the other process so far, without child processes.
    """

    value: Any
    seconds: float
    cpu_seconds: float
    own_cpu_seconds: float
    peak_memory_mib: float | None


class Isolated:
    """An object in a fresh interpreter, which ends with the `with` block.

    Args:
        make: makes the object there; it, all arguments and all results must be picklable.

    Raises:
        IsolatedError: if the object cannot be made.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        # Not a daemon: those may not have child processes, such as a DataLoader's workers.
        self._process = context.Process(target=_serve, args=(there, make), daemon=False)
        self._process.start()
        there.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def call(self, method: str, *arguments: Any) -> Reply:
        """Call one of the object's methods.

        Raises:
            IsolatedError: if it raises, or its process is gone.
        """
        self._here.send((method, arguments))
        return self._receive()

    def work(self, method: str, *arguments: Any) -> float:
        """Call a method and return its CPU seconds, as `mineral_bench.measure.interleave` expects."""
        return self.call(method, *arguments).cpu_seconds

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> Reply:
        try:
            reply = self._here.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            raise IsolatedError(f"its process ended with code {self._process.exitcode}: out of memory?") from None
        if isinstance(reply, str):
            raise IsolatedError(reply)
        assert isinstance(reply, Reply)
        return reply

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _serve(pipe: Connection, make: Callable[[], Any]) -> None:
    """Make the object and serve calls until the other side closes the pipe."""
    made = _attempt(make)
    pipe.send(made if isinstance(made, str) else replace(made, value=None))
    try:
        while not isinstance(made, str):
            method, arguments = pipe.recv()
            pipe.send(_attempt(getattr(made.value, method), *arguments))
    except (EOFError, ConnectionError):
        return  # the other side has closed the pipe, or is gone


def _attempt(action: Callable[..., Any], *arguments: Any) -> Reply | str:
    start, cpu, own = time.perf_counter(), cpu_seconds(), time.process_time()
    try:
        value = action(*arguments)
    except Exception as error:  # whatever it was, it is reported to the other process
        words = (str(error).strip().splitlines() or [""])[0]
        return words if isinstance(error, MineralError) else f"{type(error).__name__}: {words}"
    own_seconds = time.process_time() - own
    return Reply(value, time.perf_counter() - start, cpu_seconds() - cpu, own_seconds, peak_memory_mib())
