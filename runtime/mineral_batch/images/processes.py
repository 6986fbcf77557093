"""Decoding in processes, for engines that take more images than one interpreter can decode.

Threads of one interpreter share its lock: header parsing, EXIF and bookkeeping limit them to some 1,300 images a second
however many cores there are. Processes do not share it. Work is handed over in pieces of several images, pixels come
back through shared memory, and a process that dies costs at most the image it died of.

Needs POSIX (file descriptors that a child inherits); `is_supported` tells.
"""

from __future__ import annotations

import mmap
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from mineral_batch.errors import BackendError, ImageError, one_line
from mineral_batch.images.decode import decode_image
from mineral_batch.images.limits import read_file
from mineral_batch.images.worker import COUNTERS, MAX_PROCESSES, Answer, Item, Piece, Setup, receive, send
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image as PILImage

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Source

#: Images that are handed to a process at once: enough that the hand-over costs little, few enough to share them evenly.
PIECE = 8
#: Seconds without progress on one image after which its process is ended.
SECONDS_PER_IMAGE = 60.0
# Pieces that a process has at a time: one to work on and one to begin with when that is done.
_SENT_AHEAD = 2
_SECONDS_TO_END = 5.0
# A process may be killed while it starts; one that never starts is an error.
_FAILED_STARTS = 3
# glibc gives memory at the top of the heap back after each image, and the kernel then zeroes it for the next: measured
# at 200 page faults and 0.4 ms an image of 384 pixels. With these it is kept, up to 64 MiB a process.
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 << 20), "MALLOC_MMAP_THRESHOLD_": str(64 << 20)}
_START = "from mineral_batch.images.worker import main; main()"
# Signals of a decoder that broke on the image's content. Others come from outside: a kill, or memory that ran out.
_CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE"})


def is_supported() -> bool:
    """Whether this system can share memory with child processes by an inherited file descriptor."""
    return os.name == "posix"


class DecodeProcesses:
    """Processes that decode into shared memory; safe from several threads.

    Args:
        spec: the model's input.
        exact: see `images.decode.load_image`.
        count: how many processes.
        seconds_per_image: after which a process that does not finish an image is ended.

    Raises:
        BackendError: if a process does not start.
    """

    def __init__(
        self, spec: InputSpec, *, exact: bool = False, count: int, seconds_per_image: float = SECONDS_PER_IMAGE
    ) -> None:
        if not 1 <= count <= MAX_PROCESSES:
            raise BackendError(f"{count} decode processes: 1 to {MAX_PROCESSES} are possible")
        self.count = count
        self._shape = (spec.height, spec.width, 3)
        self._memory = SharedMemory()
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._workers = [
            _Worker(Setup(self._memory.descriptor, index, spec, exact), self._memory, seconds_per_image)
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
            pixels: from `buffer`.
            sources: at most as many as the buffer has rows; failures are passed on.
            with_exif: see `images.decode.decode_image`.

        Returns:
            Futures that give, one after the other, the results of all sources in order.
        """
        tasks = [
            _Task(pixels, first, sources[first : first + PIECE], with_exif) for first in range(0, len(sources), PIECE)
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

    def _serve(self, worker: _Worker) -> None:
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


class Answered(list[Image | Failure]):
    """The results of a piece, and the seconds that decoding took."""

    seconds: float = 0.0


class SharedMemory:
    """One anonymous file that grows, divided into buffers; its first page holds the processes' counters."""

    def __init__(self) -> None:
        self.descriptor = _anonymous_file()
        self._size = COUNTERS
        os.truncate(self.descriptor, self._size)
        self.counters = np.frombuffer(mmap.mmap(self.descriptor, COUNTERS), np.uint32)
        self._offsets: dict[int, tuple[int, Pixels]] = {}
        self._free: list[Pixels] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> tuple[Pixels, bool]:
        """A buffer of uint8 that nobody uses, and whether it is new."""
        with self._lock:
            for index, pixels in enumerate(self._free):
                if pixels.shape == shape:
                    return self._free.pop(index), False
            return self._grow(shape), True

    def _grow(self, shape: tuple[int, ...]) -> Pixels:
        length, offset = int(np.prod(shape)), self._size
        end = offset + length
        self._size = -(-end // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        os.truncate(self.descriptor, self._size)
        pixels: Pixels = np.frombuffer(mmap.mmap(self.descriptor, length, offset=offset), np.uint8).reshape(shape)
        self._offsets[pixels.ctypes.data] = (offset, pixels)
        return pixels

    def offset(self, pixels: Pixels) -> int:
        """Where a buffer lies, bytes."""
        return self._offsets[pixels.ctypes.data][0]

    def give_back(self, pixels: Pixels) -> None:
        """Let a buffer be taken again."""
        with self._lock:
            self._free.append(pixels)

    def close(self) -> None:
        """Close the file; buffers stay readable as long as they are held."""
        os.close(self.descriptor)


def _anonymous_file() -> int:
    """Open a file without a name that children inherit, in memory where possible: /dev/shm is often too small."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("mineral-batch")
    descriptor, name = tempfile.mkstemp(prefix="mineral-batch-")
    os.unlink(name)  # noqa: PTH108 - the descriptor is all that is needed
    return descriptor


class _Task:
    """A piece of a batch, and the future of its results.

    Attributes:
        future: of the results, in order.
        items: what a process has to decode: row, name, and a path or bytes.
    """

    def __init__(self, pixels: Pixels, first: int, sources: Sequence[Source | Failure], with_exif: bool) -> None:
        self.future: Future[Answered] = Future()
        self.pixels, self.with_exif = pixels, with_exif
        self._first, self._sources = first, sources
        self._results: dict[int, Image | Failure] = {}
        self._seconds = 0.0
        self.items: tuple[Item, ...] = ()

    def read(self, setup: Setup) -> None:
        """Find what a process has to decode; what cannot be read, and what is in memory, gets its result here."""
        items = []
        for row, source in enumerate(self._sources, self._first):
            if isinstance(source, Failure):
                self.fail(row, source)
                continue
            try:
                content = _content(source)
            except (OSError, ImageError) as error:
                self.fail(row, Failure(source.name, "read", one_line(error)))
                continue
            if isinstance(content, (str, bytes)):
                items.append((row, source.name, content))
            else:
                self._decode_here(row, source, setup)
        self.items = tuple(items)

    def _decode_here(self, row: int, source: Source, setup: Setup) -> None:
        image = decode_image(source.name, source.read, setup.spec, exact=setup.exact, with_exif=self.with_exif)
        if isinstance(image, Failure):
            self.fail(row, image)
        else:
            self.pixels[row] = image.pixels
            self._results[row] = image

    def fail(self, row: int, failure: Failure) -> None:
        """Take a failure for a row's result."""
        self.pixels[row] = 0
        self._results[row] = failure

    def take(self, items: Sequence[Item], answer: Answer) -> None:
        """Take a process's answer for some of the items."""
        for (row, name, _), result in zip(items, answer.results, strict=True):
            if isinstance(result, Failure):
                self._results[row] = result
            else:
                self._results[row] = Image(name, self.pixels[row], *result)
        self._seconds += answer.seconds

    def resolve(self) -> None:
        """Set the future: every row has its result."""
        answered = Answered(self._results[row] for row in range(self._first, self._first + len(self._sources)))
        answered.seconds = self._seconds
        self.future.set_result(answered)


def _content(source: Source) -> str | bytes | PILImage.Image:
    """A file's path, which its process reads; what an archive or the caller's memory holds is read here."""
    if isinstance(source.read, partial) and source.read.func is read_file:
        return str(source.read.args[0])
    return source.read()


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


class _Worker:
    """One process, started anew after it died.

    Attributes:
        sent: pieces that it has been given, oldest first, and has not answered.
    """

    def __init__(self, setup: Setup, memory: SharedMemory, limit: float) -> None:
        self.sent: deque[_Task] = deque()
        self._setup, self._memory, self._limit = setup, memory, limit
        self._failed_starts = 0
        self._start()

    def submit(self, task: _Task) -> None:
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

    def _salvage(self, task: _Task, items: Sequence[Item], death: _DiedError, *, is_second: bool = False) -> None:
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

    def _decode(self, task: _Task, items: Sequence[Item], *, is_second: bool = False) -> None:
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

    def _send(self, task: _Task, items: Sequence[Item]) -> None:
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
                self._wait()
                self._has_answered = True
            return cast("Answer", self._wait())
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

    def _wait(self) -> object:
        """Read a message; a process that finishes no image for `limit` seconds is given up."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN | select.POLLHUP)
        finished, since = -1, time.monotonic()
        while not poll.poll(min(1000.0, 1000 * self._limit)):
            now = self._finished()
            if now != finished:
                finished, since = now, time.monotonic()
            elif time.monotonic() - since >= self._limit:
                raise _TooSlowError
        return receive(partial(_read_exactly, self._output.fileno()))

    def _finished(self) -> int:
        return int(self._memory.counters[self._setup.number])

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
