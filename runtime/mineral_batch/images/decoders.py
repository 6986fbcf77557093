"""Who decodes: the processor, or GPUs that take big JPEGs off it. `auto` measures which is faster here, once.

Where the engine takes no more pictures than the processor decodes, a decoder on the GPU would only slow the engine.
"""

from __future__ import annotations

import itertools
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import PIL

from mineral_batch.engines.base import is_on_processor
from mineral_batch.errors import BackendError
from mineral_batch.images.decode import PictureError, decode_image
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure, Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from PIL import Image as PILImage

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Source

    Read = Callable[[], bytes | PILImage.Image]

AUTO = "auto"
CPU, GPU = "cpu", "gpu"
DECODERS = (CPU, GPU, AUTO)
# For `auto`: among so many of a run's first pictures it looks for so many big JPEGs, and decodes each so many times, or
# until every thread had so many; the engine takes so many batches.
_LOOKED_AT = 64
_MEASURED = 16
_AT_LEAST = 4
_ROUNDS = 3
_FOR_EACH_THREAD = 4
# A processor that decodes so many times what the engine takes leaves nothing to gain.
_ENOUGH = 1.1


class Decoder(Protocol):
    """Makes the model's input of a picture.

    Attributes:
        name: as in `DECODERS`.
        version: of its software, and how it decodes: what changes a pixel.
        threads: how many may call it at once, and should.
    """

    name: str
    version: str
    threads: int

    @property
    def counts(self) -> Mapping[str, int]:
        """What was decoded where; empty if there is but one place."""
        ...

    def decode(self, name: str, read: Read, *, with_capture: bool = False) -> Image | Failure:
        """See `images.decode_image`; safe from any thread."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


class CpuDecoder:
    """Pillow, on as many threads as there are processors; see `Decoder`.

    Args:
        spec: the model's input.
        exact: see `images.open_rgb`.
    """

    name = CPU

    def __init__(self, spec: InputSpec, *, exact: bool = False) -> None:
        self._spec = spec
        self._exact = exact
        self.version = f"Pillow {PIL.__version__}, {'in full' if exact else 'scaled'}"
        self.threads = cpu_count()
        self.counts: Mapping[str, int] = {}

    def decode(self, name: str, read: Read, *, with_capture: bool = False) -> Image | Failure:
        """See `images.decode_image`."""
        return decode_image(name, read, self._spec, exact=self._exact, with_capture=with_capture)

    def close(self) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class Options:
    """What a decoder is opened with.

    Attributes:
        spec: the model's input.
        exact: see `images.open_rgb`.
        devices: the GPUs; empty for the first.
        threads: that decode at once; None for the decoder's own number.
    """

    spec: InputSpec
    exact: bool = False
    devices: Sequence[int] = ()
    threads: int | None = None


def check_name(name: str) -> None:
    """Raises `BackendError` if there is no such decoder."""
    if name not in DECODERS:
        raise BackendError(f"no decoder is called '{name}'; there are: {', '.join(DECODERS)}")


def open_decoder(name: str, options: Options) -> Decoder:
    """The one asked for, or an error: never another.

    Args:
        name: `cpu` or `gpu`.
        options: its options.

    Raises:
        BackendError: if it does not work here.
    """
    cpu = CpuDecoder(options.spec, exact=options.exact)
    if name == CPU:
        return cpu
    from mineral_batch.images.gpu.decoder import GpuDecoder

    return GpuDecoder(options.spec, cpu, options.devices)


def choose(
    sources: Iterable[Source | Failure], options: Options, earlier: str | None, backend: Backend, batch_size: int
) -> tuple[Decoder, str]:
    """The faster decoder for these pictures, and why in one line; the processor where the engine is no faster than it.

    Args:
        sources: the first ones of the run; they are read.
        options: for either.
        earlier: `version` of what an earlier run into the same folder was made with, which then is not changed.
        backend: the open engine that they are decoded for; it is tried, too.
        batch_size: pictures that it takes at once.

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
        chosen, why = _faster(cpu, gpu, _big_jpegs(sources), options.threads, partial(_taken, backend, batch_size))
    except BaseException:
        gpu.close()
        raise
    if chosen is cpu:
        gpu.close()
    return chosen, f"decoding with {chosen.version}: {why}"


def _faster(
    cpu: Decoder, gpu: Decoder, jpegs: Sequence[bytes], threads: int | None, taken: Callable[[], float]
) -> tuple[Decoder, str]:
    if len(jpegs) < _AT_LEAST:
        return cpu, f"fewer than {_AT_LEAST} big JPEGs among the first {_LOOKED_AT} pictures"
    engine, on_cpu = taken(), _rate(cpu, jpegs, threads or cpu.threads)
    told = f"{on_cpu:.0f} big JPEGs a second on the processor"
    if on_cpu >= _ENOUGH * engine:
        return cpu, f"{told}, and the engine takes {engine:.0f} pictures"
    try:
        with_gpu = _rate(gpu, jpegs, threads or gpu.threads)
    except BackendError as error:
        return cpu, f"{told}; {error}"
    return (gpu if with_gpu > on_cpu else cpu), f"{told}, {with_gpu:.0f} with the GPU"


def _taken(backend: Backend, batch_size: int) -> float:
    """Pictures a second that the engine takes if it never waits; infinite if they cost the decoders' own time."""
    if is_on_processor(backend):
        return math.inf
    batches = [backend.buffer(batch_size) for _ in range(backend.workers)]
    return batch_size * _calls_a_second(backend.infer, batches, _ROUNDS * len(batches), backend.workers)


def _rate(decoder: Decoder, jpegs: Sequence[bytes], threads: int) -> float:
    """Pictures a second, from memory, as a run decodes them."""

    def decode(content: bytes) -> object:
        return decoder.decode("", lambda: content)

    return _calls_a_second(decode, jpegs, max(_ROUNDS * len(jpegs), _FOR_EACH_THREAD * threads), threads)


def _calls_a_second(call: Callable[[Any], object], given: Sequence[Any], count: int, threads: int) -> float:
    """Of so many, with one after the other of what is given; every thread calls once before."""
    again = itertools.cycle(given)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(call, itertools.islice(again, max(len(given), threads))))  # caches, and the GPU's memory
        start = time.perf_counter()
        list(pool.map(call, itertools.islice(again, count)))
        return count / (time.perf_counter() - start)


def _big_jpegs(sources: Iterable[Source | Failure]) -> list[bytes]:
    from mineral_batch.images.gpu.decoder import look_at

    contents = (_content(source) for source in sources if not isinstance(source, Failure))
    return list(itertools.islice((c for c in contents if c and not isinstance(look_at(c), str)), _MEASURED))


def _content(source: Source) -> bytes | None:
    try:
        content = source.read()
    except (OSError, PictureError):
        return None
    return content if isinstance(content, bytes) else None


def drawn_ahead(sources: Iterator[Source | Failure]) -> tuple[list[Any], Iterator[Source | Failure]]:
    """The first sources of a run, to look at, and all of them again."""
    first = list(itertools.islice(sources, _LOOKED_AT))
    return first, itertools.chain(first, sources)
