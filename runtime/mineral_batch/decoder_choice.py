"""`--decode auto`: measures on a run's first images whether the CPU or the GPU decodes faster, and takes that one.

If decoding on the CPU keeps up with the engine, the CPU is taken: decoding on the GPU would only slow the engine down.
"""

from __future__ import annotations

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from mineral_batch.errors import BackendError, ImageError
from mineral_batch.images.decoder import CPU, GPU
from mineral_batch.images.decoders import open_decoder
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mineral_batch.engines.base import Backend
    from mineral_batch.images.decoder import DecodeOptions, Decoder
    from mineral_batch.types import Source

_T = TypeVar("_T")

# Among this many of a run's first images it looks for this many large JPEGs, and needs at least this many.
_SAMPLED_SOURCES = 64
_SAMPLED_JPEGS = 16
_MIN_JPEGS = 4
# Each JPEG is decoded this often, or until every thread has decoded this many; the engine runs this many batches.
_ROUNDS = 3
_JPEGS_PER_THREAD = 4
# If the CPU decodes this many times the engine's throughput, the GPU cannot make the run faster.
_MARGIN = 1.1


def peek(sources: Iterator[Source | Failure]) -> tuple[list[Source | Failure], Iterator[Source | Failure]]:
    """Return a run's first sources, and an iterator over all of them."""
    first = list(itertools.islice(sources, _SAMPLED_SOURCES))
    return first, itertools.chain(first, sources)


def choose_decoder(
    sources: Iterable[Source | Failure], options: DecodeOptions, earlier: str | None, backend: Backend, batch_size: int
) -> tuple[Decoder, str]:
    """Return the faster decoder for these images, open, and the reason in one line.

    Args:
        sources: the first ones of the run; they are read.
        options: for either decoder.
        earlier: `version` of the decoder that an earlier run into the same folder used, which is then kept.
        backend: the open engine that the images are decoded for; its throughput is measured too.
        batch_size: images per call of the engine.

    Raises:
        BackendError: if the engine fails.
    """
    cpu = open_decoder(CPU, options)
    if earlier == cpu.version:
        return cpu, f"decoding with {cpu.version}, as before"
    try:
        gpu = open_decoder(GPU, options)
    except BackendError as error:
        return cpu, f"decoding with {cpu.version}: {error}"
    if earlier == gpu.version:
        return gpu, f"decoding with {gpu.version}, as before"
    try:
        engine_rate = partial(_engine_rate, backend, batch_size)
        chosen, reason = _faster(cpu, gpu, _large_jpegs(sources), options.threads, engine_rate)
    except BaseException:
        gpu.close()
        raise
    if chosen is cpu:
        gpu.close()
    return chosen, f"decoding with {chosen.version}: {reason}"


def _faster(
    cpu: Decoder, gpu: Decoder, jpegs: Sequence[bytes], threads: int | None, engine_rate: Callable[[], float]
) -> tuple[Decoder, str]:
    if len(jpegs) < _MIN_JPEGS:
        return cpu, f"fewer than {_MIN_JPEGS} large JPEGs among the first {_SAMPLED_SOURCES} images"
    engine, cpu_rate = engine_rate(), _decode_rate(cpu, jpegs, threads or cpu.threads)
    message = f"the CPU decodes {cpu_rate:.0f} large JPEGs a second"
    if cpu_rate >= _MARGIN * engine:
        return cpu, f"{message}, the engine needs {engine:.0f}"
    try:
        gpu_rate = _decode_rate(gpu, jpegs, threads or gpu.threads)
    except BackendError as error:
        return cpu, f"{message}; {error}"
    return (gpu if gpu_rate > cpu_rate else cpu), f"{message}, the GPU {gpu_rate:.0f}"


def _engine_rate(backend: Backend, batch_size: int) -> float:
    """Return the images per second that the engine takes; infinite if it shares the CPU with the decoders."""
    if backend.info.device.kind == "cpu":
        return math.inf
    batches = [backend.buffer(batch_size) for _ in range(backend.workers)]
    return batch_size * _calls_per_second(backend.infer, batches, _ROUNDS * len(batches), backend.workers)


def _decode_rate(decoder: Decoder, jpegs: Sequence[bytes], threads: int) -> float:
    """Return the images per second that are decoded from memory, with as many threads as a run has."""

    def decode(content: bytes) -> object:
        return decoder.decode("", lambda: content)

    return _calls_per_second(decode, jpegs, max(_ROUNDS * len(jpegs), _JPEGS_PER_THREAD * threads), threads)


def _calls_per_second(call: Callable[[_T], object], arguments: Sequence[_T], count: int, threads: int) -> float:
    """Time `count` calls that cycle through the arguments, after a warm-up in which every thread calls once."""
    cycle = itertools.cycle(arguments)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, itertools.islice(cycle, max(len(arguments), threads))))  # fills caches and GPU memory
        start = time.perf_counter()
        list(pool.map(call, itertools.islice(cycle, count)))
        return count / (time.perf_counter() - start)


def _large_jpegs(sources: Iterable[Source | Failure]) -> list[bytes]:
    from mineral_batch.images.gpu.jpeg import GpuJpeg, inspect_jpeg

    contents = (_content(source) for source in sources if not isinstance(source, Failure))
    large = (content for content in contents if content and isinstance(inspect_jpeg(content), GpuJpeg))
    return list(itertools.islice(large, _SAMPLED_JPEGS))


def _content(source: Source) -> bytes | None:
    try:
        content = source.read()
    except (OSError, ImageError):
        return None
    return content if isinstance(content, bytes) else None
