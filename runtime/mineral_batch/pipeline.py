"""Decode threads -> preallocated batches -> engine threads -> results in the order of the files.

    sources --(decode threads)--> slot 0 | slot 1 | slot 2 | ... --(engine threads)--> results, in order

While the engine works on one slot the next is being decoded and the last one is being written. A GPU has one engine
thread and its batches are large; an engine on the CPU takes one image on each of its threads.
Slots are allocated once and reused, and no more sources are drawn than they hold, so memory does not depend on how
many there are.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from mineral_batch.errors import BackendError
from mineral_batch.images.decode import decode_image
from mineral_batch.images.processes.pool import PIECE, DecodeProcesses
from mineral_batch.images.processes.task import Answered
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image, Pixels, Prediction, Probabilities, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from PIL import Image as PILImage

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Source

    _Decode = Callable[[str, Callable[[], bytes | PILImage.Image]], Image | Failure]

# Images that may be drawn ahead, so that one that decodes slowly does not stop the others: this many per decode
# thread, and fewer if there are more threads than CPUs, because those only wait for a GPU.
_LOOK_AHEAD = 8
_LOOK_AHEAD_WAITING = 2


class StageTimes:
    """Seconds that each stage was busy or waited, summed over its threads.

    Attributes:
        decode: reading, decoding and resizing, over all decode threads.
        engine: inside the engine.
        engine_waited: the engine, idle, for images: if this is large, decoding is the bottleneck.
        results_waited: the consumer of the results, for the next batch.
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
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to one of the attributes; safe from any thread."""
        with self._lock:
            setattr(self, stage, getattr(self, stage) + seconds)

    def rounded(self) -> dict[str, float]:
        """All four, to the millisecond."""
        return {name: round(value, 3) for name, value in vars(self).items() if not name.startswith("_")}


class DecodePool(Protocol):
    """Decodes images into the batches of a run, in threads or in processes.

    Attributes:
        block: images that are handed over together at least.
        ahead: images that should be under way at once to keep the pool busy.
    """

    block: int
    ahead: int

    def buffer(self, images: int) -> Pixels:
        """Room for a batch: (images, H, W, 3) uint8."""
        ...

    def fill(self, pixels: Pixels, sources: Sequence[Source | Failure]) -> list[Future[Sequence[Image | Failure]]]:
        """Decode sources into the first rows of a buffer; the futures give their results in order."""
        ...

    def close(self) -> None:
        """Stop: what has not begun is canceled."""
        ...


class _Threads:
    """Threads of this process; see `DecodePool`."""

    block = 1

    def __init__(self, backend: Backend, decode: _Decode, threads: int, times: StageTimes) -> None:
        self.ahead = max(_LOOK_AHEAD * min(threads, cpu_count()), _LOOK_AHEAD_WAITING * threads)
        self.buffer = backend.buffer
        self._decode, self._times = decode, times
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def fill(self, pixels: Pixels, sources: Sequence[Source | Failure]) -> list[Future[Sequence[Image | Failure]]]:
        return [self._pool.submit(self._into, pixels[row], source) for row, source in enumerate(sources)]

    def _into(self, row: Pixels, source: Source | Failure) -> list[Image | Failure]:
        """Fill one row (H, W, 3); an image that cannot be read leaves it black."""
        with self._times.measure("decode"):
            image = source if isinstance(source, Failure) else self._decode(source.name, source.read)
            row[...] = 0 if isinstance(image, Failure) else image.pixels
        return [image]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Processes:
    """One run's view of decode processes; see `DecodePool`."""

    block = 2 * PIECE

    def __init__(
        self, processes: DecodeProcesses, times: StageTimes, prepare: Callable[[Pixels], object], *, with_exif: bool
    ) -> None:
        self.ahead = 3 * PIECE * processes.count
        self._processes, self._times, self._prepare, self._with_exif = processes, times, prepare, with_exif
        self._buffers: list[Pixels] = []
        self._under_way: list[Future[Answered]] = []

    def buffer(self, images: int) -> Pixels:
        self._buffers.append(self._processes.buffer(images, self._prepare))
        return self._buffers[-1]

    def fill(self, pixels: Pixels, sources: Sequence[Source | Failure]) -> list[Future[Sequence[Image | Failure]]]:
        futures = self._processes.fill(pixels, sources, with_exif=self._with_exif)
        for future in futures:
            future.add_done_callback(self._count)
        self._under_way = [future for future in self._under_way if not future.done()] + futures
        return cast("list[Future[Sequence[Image | Failure]]]", futures)

    def _count(self, future: Future[Answered]) -> None:
        if not future.cancelled() and future.exception() is None:
            self._times.add("decode", future.result().seconds)

    def close(self) -> None:
        for future in self._under_way:
            future.cancel()
        wait(self._under_way)  # a buffer that is still being written must not serve another run
        for pixels in self._buffers:
            self._processes.release(pixels)


@dataclass
class _Slot:
    """Room for some batches: (B, H, W, 3) pixels, and what is on its way into them."""

    pixels: Pixels
    decoding: list[Future[Sequence[Image | Failure]]] = field(default_factory=list)
    answer: Future[list[Result]] | None = None


def slots(batch_size: int, ahead: int, workers: int) -> int:
    """Number of buffers: one being written, one being filled, one in each engine thread, or more if they are small.

    Args:
        batch_size: images in each.
        ahead: images that should be on their way through the decoders at once.
        workers: engine threads.
    """
    return max(workers + 2, -(-ahead // batch_size))


def run(
    sources: Iterable[Source | Failure],
    backend: Backend,
    *,
    batch_size: int,
    decode: _Decode | None = None,
    decode_threads: int | None = None,
    processes: DecodeProcesses | None = None,
    with_exif: bool = False,
    times: StageTimes | None = None,
) -> Generator[Result, None, None]:
    """Predict images, lazily and in order.

    Exactly one result comes for each source: a `Prediction`, or a `Failure` in its place. An image's answer does not
    depend on its neighbors, nor on whether they could be read. Closing the iterator stops the threads.

    Args:
        sources: images to read, or failures that are passed on.
        backend: an open engine; it is used from `backend.workers` threads and left open.
        batch_size: images that go to the engine at once.
        decode: makes the engine's input of an image; None for `mineral_batch.images.decode.decode_image`.
        decode_threads: that call it; None for one per CPU.
        processes: decode in these processes instead; left open.
        with_exif: for `processes`: read when and where each image was taken, too.
        times: where the seconds of each stage are added.

    Raises:
        BackendError: if the engine itself fails, or decode processes cannot be started.
    """
    times = times or StageTimes()
    pool: DecodePool
    if processes is None:
        decode = decode or partial(decode_image, spec=backend.contract.input)
        pool = _Threads(backend, decode, decode_threads or cpu_count(), times)
    else:
        pool = _Processes(processes, times, backend.pin, with_exif=with_exif)
    engine = ThreadPoolExecutor(backend.workers, thread_name_prefix="engine")
    size = -(-pool.block // batch_size) * batch_size
    free = [_Slot(pool.buffer(size)) for _ in range(slots(size, pool.ahead, backend.workers))]
    waiting: deque[_Slot] = deque()
    source = iter(sources)
    try:
        while True:
            while free and (batch := list(islice(source, size))):
                slot = free.pop()
                slot.decoding = pool.fill(slot.pixels, batch)
                slot.answer = engine.submit(_infer, backend, slot, batch_size, times)
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
        pool.close()
        engine.shutdown(cancel_futures=True)


def _infer(backend: Backend, slot: _Slot, batch_size: int, times: StageTimes) -> list[Result]:
    """Wait for a slot's images and put them through the engine, a batch at a time."""
    with times.measure("engine_waited"):
        images = [image for future in slot.decoding for image in future.result()]
    slot.decoding = []
    results: list[Result] = []
    for start in range(0, len(images), batch_size):
        results += _batch(backend, slot.pixels, images[start : start + batch_size], start, times)
    return results


def _batch(
    backend: Backend, pixels: Pixels, images: Sequence[Image | Failure], start: int, times: StageTimes
) -> list[Result]:
    """Results of one batch; the engine is not called where no image could be read."""
    if all(isinstance(image, Failure) for image in images):
        return list(images)  # type: ignore[arg-type]  # mypy does not narrow through all()
    with times.measure("engine"):
        return infer(backend, pixels[start : start + len(images)], images)


def infer(backend: Backend, pixels: Pixels, images: Sequence[Image | Failure]) -> list[Result]:
    """Return the results of one batch.

    Args:
        backend: the open engine.
        pixels: (N, H, W, 3) uint8.
        images: N, that the pixels are of; a failure stays one.

    Raises:
        BackendError: if the engine fails, or its output is not of the shape that the contract says.
    """
    probabilities, contract = backend.infer(pixels), backend.contract
    expected = len(contract.labels), len(contract.labels) + (contract.familiarity is not None)
    if len(probabilities) != len(images) or probabilities.shape[1:] not in {(columns,) for columns in expected}:
        raise BackendError(
            f"the model's output has the shape {probabilities.shape} for {len(images)} images and "
            f"{len(contract.labels)} labels: it is not what its contract says"
        )
    is_valid = np.all((probabilities >= 0) & (probabilities <= 1), axis=1)  # False for NaN
    return [
        _result(image, row, contract) if valid or isinstance(image, Failure) else _invalid(image, row)
        for image, row, valid in zip(images, probabilities, is_valid, strict=True)
    ]


def _result(image: Image | Failure, probabilities: Probabilities, contract: ModelContract) -> Result:
    if isinstance(image, Failure):
        return image
    labels = len(contract.labels)
    return Prediction(
        image.path,
        probabilities[:labels].copy(),
        image.width,
        image.height,
        image.exif,
        labels=contract.labels,
        thresholds=contract.thresholds,
        familiarity=float(probabilities[labels]) if len(probabilities) > labels else None,
        damage=image.damage,
        further=image.further,
    )


def _invalid(image: Image, probabilities: Probabilities) -> Failure:
    is_number = np.isfinite(probabilities).all()
    reason = "outside 0 to 1, so not a probability" if is_number else "not a number"
    return Failure(image.path, "infer", f"the model's output is {reason}")
