"""One decode process; `supervisor` starts it and talks to it.

It reads pieces of work from its standard input and writes what became of them to its standard output, both as pickles
behind their length. Pixels go into memory that it shares with the parent. It ends when its input ends, so no decode
process outlives its run.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import struct
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mineral_batch.images.budget import share_decode_budget
from mineral_batch.images.decode import decode_image
from mineral_batch.images.limits import MAX_PIXELS, read_file
from mineral_batch.images.processes.shared_memory import map_counters
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import ExifInfo, Pixels

_LENGTH = struct.Struct("<Q")
_SECONDS_BETWEEN_TRIES = 0.05


class Setup(NamedTuple):
    """What a process receives when it starts.

    Attributes:
        memory: file descriptor of the shared memory.
        number: of this process, for its counters.
        processes: how many share the machine.
        spec: the model's input.
        exact: see `decode.load_image`.
        keep_damaged, max_pixels: see `decode.decode_image`.
    """

    memory: int
    number: int
    processes: int
    spec: InputSpec
    exact: bool
    keep_damaged: bool = False
    max_pixels: int = MAX_PIXELS


Item = tuple[int, str, str | bytes]


class Piece(NamedTuple):
    """Images to decode into rows of a buffer.

    Attributes:
        offset: of the buffer in the shared memory, bytes.
        rows: of the buffer, images.
        items: row, name, and a file's path or an image's bytes, for each image.
        with_exif: see `decode.decode_image`.
    """

    offset: int
    rows: int
    items: tuple[Item, ...]
    with_exif: bool


class Decoded(NamedTuple):
    """What a process answers about an image whose pixels are in the shared memory."""

    width: int
    height: int
    exif: ExifInfo | None
    damage: str | None
    further: int


class Answer(NamedTuple):
    """What became of a piece: one entry per image, and the seconds it took."""

    results: list[Decoded | Failure]
    seconds: float


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def receive(read: Callable[[int], bytes]) -> Any:
    """Read one message.

    Args:
        read: gives exactly so many bytes, or fewer at the end.

    Raises:
        EOFError: if the other side has gone.
    """
    head = read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = read(_LENGTH.unpack(head)[0])
    if len(data) < _LENGTH.unpack(head)[0]:
        raise EOFError
    return pickle.loads(data)  # noqa: S301 - from our own process, over a pipe that nobody else has


class _Worker:
    """Decodes pieces into the shared memory."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._buffers: dict[tuple[int, int], Pixels] = {}
        self._counters = map_counters(setup.memory)[setup.number]
        share_decode_budget(setup.processes, self._alone)

    def decode(self, piece: Piece) -> Answer:
        start = time.perf_counter()
        pixels = self._buffer(piece.offset, piece.rows)
        results: list[Decoded | Failure] = []
        for row, name, content in piece.items:
            self._counters[0] = len(results)
            results.append(self._one(pixels[row], name, content, piece.with_exif))
        return Answer(results, time.perf_counter() - start)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold what only one process may hold at a time: an image that takes more than its share of the memory."""
        import fcntl

        while True:
            try:
                fcntl.lockf(self._setup.memory, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
                break
            except OSError:
                self._counters[1] += 1  # waiting is no lack of progress
                time.sleep(_SECONDS_BETWEEN_TRIES)
        try:
            yield
        finally:
            fcntl.lockf(self._setup.memory, fcntl.LOCK_UN, 1)

    def _one(self, row: Pixels, name: str, content: str | bytes, with_exif: bool) -> Decoded | Failure:
        read = partial(read_file, content) if isinstance(content, str) else lambda: content
        setup = self._setup
        image = decode_image(
            name,
            read,
            setup.spec,
            exact=setup.exact,
            with_exif=with_exif,
            keep_damaged=setup.keep_damaged,
            max_pixels=setup.max_pixels,
        )
        if isinstance(image, Failure):
            row[...] = 0
            return image
        row[...] = image.pixels
        return Decoded(image.width, image.height, image.exif, image.damage, image.further)

    def _buffer(self, offset: int, rows: int) -> Pixels:
        """(rows, H, W, 3) uint8 at `offset` of the shared memory."""
        if (offset, rows) not in self._buffers:
            shape = (rows, self._setup.spec.height, self._setup.spec.width, 3)
            memory = mmap.mmap(self._setup.memory, int(np.prod(shape)), offset=offset)
            self._buffers[offset, rows] = np.frombuffer(memory, np.uint8).reshape(shape)
        return self._buffers[offset, rows]


def main() -> None:
    """Serve the parent until it closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    # Whatever a library prints must not get among the messages.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    read = sys.stdin.buffer.read
    worker = _Worker(receive(read))
    send(output, os.getpid())
    try:
        while True:
            send(output, worker.decode(receive(read)))
    except (EOFError, BrokenPipeError):
        os._exit(0)
