"""Decode threads -> preallocated batches -> engine threads -> results in the order of the files.

    sources --(decode threads)--> slot 0 | slot 1 | slot 2 | ... --(engine threads)--> results, in order

While the engine works on one slot the next is being decoded and the last one is being written. A GPU has one engine
thread and its batches are large; an engine on the processor takes one picture on each of as many threads as it likes.
Slots are allocated once and reused, and no more sources are drawn than they hold, so memory does not depend on how
many there are.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.images.decode import decode_image
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image, Pixels, Prediction, Probabilities, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from PIL import Image as PILImage

    from mineral_batch.engines.base import Backend
    from mineral_batch.types import Source

    _Decode = Callable[[str, Callable[[], bytes | PILImage.Image]], Image | Failure]

# Pictures that may be drawn ahead, so that one that decodes slowly does not stop the others: so many for each decode
# thread, and fewer where there are more threads than processors, because those only wait for a GPU.
_LOOK_AHEAD = 8
_LOOK_AHEAD_WAITING = 2


class StageTimes:
    """Seconds that each stage was busy or waited, summed over its threads.

    Attributes:
        decode: reading, decoding and resizing, over all decode threads.
        engine: inside the engine.
        engine_waited: the engine, idle, for pictures: decoding is the bottleneck where this is large.
        results_waited: whoever draws the results, for the next batch.
    """

    def __init__(self) -> None:
        self.decode = self.engine = self.engine_waited = self.results_waited = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the block's duration to one of the attributes; safe from any thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            with self._lock:
                setattr(self, stage, getattr(self, stage) + seconds)

    def rounded(self) -> dict[str, float]:
        """All four, to the millisecond."""
        return {name: round(value, 3) for name, value in vars(self).items() if not name.startswith("_")}


@dataclass
class _Slot:
    """Room for one batch: (B, H, W, 3) pixels, and what is on its way into them."""

    pixels: Pixels
    decoding: list[Future[Image | Failure]] = field(default_factory=list)
    answer: Future[list[Result]] | None = None


def slots(batch_size: int, decode_threads: int, workers: int) -> int:
    """Batches that there is room for: one being written, one being filled, one in each engine thread, or more if small.

    Args:
        batch_size: pictures in each.
        decode_threads: how many decode.
        workers: engine threads.
    """
    ahead = max(_LOOK_AHEAD * min(decode_threads, cpu_count()), _LOOK_AHEAD_WAITING * decode_threads)
    return max(workers + 2, -(-ahead // batch_size))


def run(
    sources: Iterable[Source | Failure],
    backend: Backend,
    *,
    batch_size: int,
    decode: _Decode | None = None,
    decode_threads: int | None = None,
    times: StageTimes | None = None,
) -> Generator[Result, None, None]:
    """Predict photographs, lazily and in order.

    Exactly one result comes for each source: a `Prediction`, or a `Failure` in its place. A picture's answer does not
    depend on its neighbours, nor on whether they could be read. Closing the iterator stops the threads.

    Args:
        sources: pictures to read, or failures that are passed on.
        backend: an open engine; it is used from `backend.workers` threads and left open.
        batch_size: pictures that go to the engine at once.
        decode: makes the engine's input of a picture; None for `mineral_batch.images.decode.decode_image`.
        decode_threads: that call it; None for one per processor.
        times: where the seconds of each stage are added.

    Raises:
        BackendError: if the engine itself fails.
    """
    times = times or StageTimes()
    decode = decode or partial(decode_image, spec=backend.contract.input)
    decode_threads = decode_threads or cpu_count()
    decoders = ThreadPoolExecutor(decode_threads, thread_name_prefix="decode")
    engine = ThreadPoolExecutor(backend.workers, thread_name_prefix="engine")
    free = [_Slot(backend.buffer(batch_size)) for _ in range(slots(batch_size, decode_threads, backend.workers))]
    waiting: deque[_Slot] = deque()
    source = iter(sources)
    try:
        while True:
            while free and (batch := list(islice(source, batch_size))):
                slot = free.pop()
                slot.decoding = [
                    decoders.submit(_decode_into, slot.pixels[row], item, decode, times)
                    for row, item in enumerate(batch)
                ]
                slot.answer = engine.submit(_infer, backend, slot, times)
                waiting.append(slot)
            if not waiting:
                return
            slot = waiting.popleft()
            assert slot.answer is not None
            with times.measure("results_waited"):
                results = slot.answer.result()
            # The results hold copies, so the slot can be refilled before they are consumed.
            free.append(slot)
            yield from results
    finally:
        decoders.shutdown(cancel_futures=True)
        engine.shutdown(cancel_futures=True)


def _decode_into(row: Pixels, source: Source | Failure, decode: _Decode, times: StageTimes) -> Image | Failure:
    """Fill one row (H, W, 3) of a batch; a picture that cannot be read leaves it black."""
    with times.measure("decode"):
        image = source if isinstance(source, Failure) else decode(source.name, source.read)
        row[...] = 0 if isinstance(image, Failure) else image.pixels
    return image


def _infer(backend: Backend, slot: _Slot, times: StageTimes) -> list[Result]:
    """Wait for a slot's pictures and put them through the engine; skipped where none could be read."""
    with times.measure("engine_waited"):
        images = [future.result() for future in slot.decoding]
    slot.decoding = []
    if all(isinstance(image, Failure) for image in images):
        return list(images)  # type: ignore[arg-type]  # mypy does not narrow through all()
    with times.measure("engine"):
        probabilities = backend.infer(slot.pixels[: len(images)])
    return [_result(image, row) for image, row in zip(images, probabilities, strict=True)]


def _result(image: Image | Failure, probabilities: Probabilities) -> Result:
    if isinstance(image, Failure):
        return image
    if not np.isfinite(probabilities).all():
        return Failure(image.path, "infer", "the model's answer is not a number")
    return Prediction(image.path, probabilities.copy(), image.width, image.height, image.exif)
