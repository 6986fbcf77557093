"""One decode process: started, fed, and started anew after it died."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from mineral_batch.errors import BackendError
from mineral_batch.images.processes.worker import Answer, Item, Piece, Setup, receive, send
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.images.processes.shared_memory import SharedMemory
    from mineral_batch.images.processes.task import Task

# More than one image may take: on a busy machine, or from a slow file system, Python itself needs a while to start.
_SECONDS_TO_START = 120.0
_SECONDS_TO_END = 5.0
# A process may be killed while it starts; one that never starts is an error.
_FAILED_STARTS = 3
# glibc gives memory at the top of the heap back after each image, and the kernel then zeroes it for the next: measured
# at 200 page faults and 0.4 ms an image of 384 pixels. With these it is kept, up to 64 MiB a process.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
_START = "from mineral_batch.images.processes.worker import main; main()"
# Signals of a decoder that broke on the image's content. Others come from outside: a kill, or memory that ran out.
_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"})


class _DiedError(Exception):
    """A process ended, or was ended, while it decoded.

    Attributes:
        finished: images of its piece that it had finished.
        has_begun: whether it had started; if not, no image is to blame.
        is_final: whether a second try would only end in the same way.
        stage: of a `Failure`: `decode` if the content is to blame, else `read`, which the next run tries again.
        reason: one line.
    """

    def __init__(
        self, finished: int, stage: str, reason: str, *, has_begun: bool = True, is_final: bool = False
    ) -> None:
        super().__init__(reason)
        self.finished, self.stage, self.reason = finished, stage, reason
        self.has_begun, self.is_final = has_begun, is_final


class _TooSlowError(Exception):
    """No image was finished in time."""


class Supervisor:
    """One process, started anew after it died.

    Attributes:
        sent: pieces that it has been given, oldest first, and has not answered.
    """

    def __init__(self, setup: Setup, memory: SharedMemory, limit: float) -> None:
        self.sent: deque[Task] = deque()
        self._setup, self._memory, self._limit = setup, memory, limit
        self._failed_starts = 0
        self._start()

    def submit(self, task: Task) -> None:
        """Give it a piece."""
        try:
            task.read(self._setup)
            if task.items:
                self._send(task, task.items)
                self.sent.append(task)
            else:
                task.resolve()
        except BaseException as error:  # a thread that ended here would leave the run waiting for ever
            task.future.set_exception(error)

    def finish(self) -> None:
        """Wait for the oldest piece; if the process died over it, decode what it left in a new one."""
        task = self.sent[0]
        try:
            try:
                task.take(task.items, self._receive())
            except _DiedError as death:
                self._salvage(task, task.items, death)
                for later in list(self.sent)[1:]:
                    self._send(later, later.items)
            task.resolve()
        except BaseException as error:
            task.future.set_exception(error)
        self.sent.popleft()

    def close(self) -> None:
        """End the process."""
        self._end()

    def _salvage(self, task: Task, items: Sequence[Item], death: _DiedError, *, is_second: bool = False) -> None:
        """Decode a piece around the image that a process died of; that one is tried once more, alone."""
        if not death.has_begun:
            self._decode(task, items, is_second=is_second)
        elif len(items) > 1:
            at = min(death.finished, len(items) - 1)
            self._decode(task, items[:at])
            self._decode(task, items[at : at + 1], is_second=True)
            self._decode(task, items[at + 1 :])
        elif is_second or death.is_final:
            task.fail(items[0][0], Failure(items[0][1], death.stage, death.reason))
        else:
            self._decode(task, items, is_second=True)

    def _decode(self, task: Task, items: Sequence[Item], *, is_second: bool = False) -> None:
        if not items:
            return
        try:
            self._send(task, items)
            task.take(items, self._receive())
        except _DiedError as death:
            self._salvage(task, items, death, is_second=is_second)

    def _start(self) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=_MALLOC | os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            pass_fds=[self._setup.memory],
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._has_answered = False
        self._write(self._setup)

    def _send(self, task: Task, items: Sequence[Item]) -> None:
        self._write(Piece(self._memory.offset(task.pixels), len(task.pixels), tuple(items), task.with_exif))

    def _write(self, message: object) -> None:
        """Send a message; that the process has died is found when its answer is read."""
        with suppress(BrokenPipeError):
            send(self._input, message)

    def _receive(self) -> Answer:
        """Wait for an answer.

        Raises:
            _DiedError: if the process ended or was too slow; another has been started.
            BackendError: if it never started.
        """
        try:
            if not self._has_answered:
                self._wait(_SECONDS_TO_START)
                self._has_answered = True
            return cast("Answer", self._wait(self._limit))
        except (EOFError, _TooSlowError) as error:
            death = self._death(error)
            self._end()
            self._failed_starts = 0 if self._has_answered else self._failed_starts + 1
            if self._failed_starts > _FAILED_STARTS:
                raise BackendError(
                    "decode processes do not start here; --decode-processes 0 decodes in threads"
                ) from error
            self._start()
            raise death from error

    def _wait(self, limit: float) -> object:
        """Read a message; a process that finishes no image for `limit` seconds is given up."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN | select.POLLHUP)
        progress, since = b"", time.monotonic()
        while not poll.poll(min(1000.0, 1000 * limit)):
            now = self._memory.counters[self._setup.number].tobytes()
            if now != progress:
                progress, since = now, time.monotonic()
            elif time.monotonic() - since >= limit:
                raise _TooSlowError
        return receive(partial(_read_exactly, self._output.fileno()))

    def _finished(self) -> int:
        return int(self._memory.counters[self._setup.number, 0])

    def _death(self, error: Exception) -> _DiedError:
        """Say why the process ended; one that was too slow is ended here."""
        self._process.kill()
        code = self._process.wait()
        finished, has_begun = self._finished(), self._has_answered
        if isinstance(error, _TooSlowError):
            reason = f"decoding takes more than {self._limit:g} seconds"
            return _DiedError(finished, "decode", reason, has_begun=has_begun, is_final=True)
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"exit code {code}"
        if name in _CRASHES:
            reason = f"damaged: the decoder crashed on it twice ({name})"
            return _DiedError(finished, "decode", reason, has_begun=has_begun)
        reason = f"its decode process was ended twice ({name}); memory may have run out"
        return _DiedError(finished, "read", reason, has_begun=has_begun)

    def _end(self) -> None:
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            break
        parts += part
    return bytes(parts)
