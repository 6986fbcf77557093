"""Time decoding alone, the engine alone and both together in one run, so that the whole can be judged by its parts."""

from __future__ import annotations

import hashlib
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch import pipeline
from mineral_batch.errors import DataError
from mineral_batch.images.decode import decode_image
from mineral_batch.pipeline import StageTimes
from mineral_batch.system import cpu_count, peak_memory_mib
from mineral_batch.types import Failure
from mineral_bench.engine_only import DECODED, LEAST_BATCHES, fill, infer_all
from mineral_bench.measure import Estimate, Plan, Rounds, interleave, median, ratio_between_runs, timed
from mineral_bench.process.usage import GpuUsage, watch_gpu
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities, Source

DECODE, ENGINE, TOGETHER, YARDSTICK = "decode alone", "engine alone", "end to end", "yardstick"

_YARDSTICK_BYTES = 2**23


class TimedBackend:
    """A backend that records the time of each batch; see `mineral_batch.engines.base.Backend`."""

    def __init__(self, backend: Backend) -> None:
        self.name, self.info = backend.name, backend.info
        self.device, self.version, self.identity = backend.device, backend.version, backend.identity
        self.contract: ModelContract = backend.contract
        self.batch_size, self.workers = backend.batch_size, backend.workers
        self.seconds: list[float] = []
        self._backend = backend

    def buffer(self, count: int) -> Pixels:
        """Return the backend's own buffer."""
        return self._backend.buffer(count)

    def pin(self, pixels: Pixels) -> None:
        """Return the backend's own buffer."""
        self._backend.pin(pixels)

    def infer(self, pixels: Pixels) -> Probabilities:
        """Return the backend's output; list.append is safe from several threads."""
        start = time.perf_counter()
        probabilities = self._backend.infer(pixels)
        self.seconds.append(time.perf_counter() - start)
        return probabilities

    def close(self) -> None:
        """Close the backend."""
        self._backend.close()


@dataclass(frozen=True)
class Load:
    """What a round consists of.

    Attributes:
        sources: images, perhaps repeated.
        batch: images in a call of the engine.
        threads: decode threads.
        exact: whether JPEGs are decoded in full.
    """

    sources: Sequence[Source]
    batch: int
    threads: int
    exact: bool = False


class Stages:
    """The three things that are timed, on one backend and one load."""

    def __init__(self, backend: Backend, load: Load) -> None:
        self.backend = TimedBackend(backend)
        self.load = load
        self.times = StageTimes()
        self.latencies: list[NDArray[np.float64]] = []
        self._buffers = self._decoded()

    def decode(self) -> None:
        """Read, decode and resize every image of a round, on as many threads as the pipeline has."""
        spec = self.backend.contract.input
        with ThreadPoolExecutor(self.load.threads) as pool:
            for _ in pool.map(lambda s: decode_image(s.name, s.read, spec, exact=self.load.exact), self.load.sources):
                pass

    def engine(self) -> None:
        """Predict as many decoded images, on as many threads as the backend wants."""
        infer_all(self.backend, itertools.islice(itertools.cycle(self._buffers), self.batches))

    def together(self) -> None:
        """Do what `mineral-batch predict` does, without the tables."""
        self.backend.seconds.clear()
        self.times = StageTimes()
        results = pipeline.run(
            self.load.sources,
            self.backend,
            batch_size=self.load.batch,
            decode=partial(decode_image, spec=self.backend.contract.input, exact=self.load.exact),
            decode_threads=self.load.threads,
            times=self.times,
        )
        with closing(results):
            for _ in results:
                pass
        self.latencies.append(np.array(self.backend.seconds))

    @property
    def batches(self) -> int:
        """Number of batches in a round; the load is a multiple of the batch."""
        return len(self.load.sources) // self.load.batch

    def _decoded(self) -> list[Pixels]:
        """Decode full batches into the memory that the backend reads fastest."""
        spec = self.backend.contract.input
        wanted = min(len(self.load.sources), max(DECODED, self.load.batch) // self.load.batch * self.load.batch)
        images = [decode_image(source.name, source.read, spec) for source in self.load.sources[:wanted]]
        pixels = [image.pixels for image in images if not isinstance(image, Failure)]
        return fill(self.backend, np.stack(pixels), self.load.batch)


def readable(sources: Sequence[Source | Failure], backend: Backend, most: int = 2000) -> list[Source]:
    """Return the images that can be decoded: a failure costs nothing and would flatter the figures.

    Raises:
        DataError: if there is none.
    """
    candidates = [source for source in sources[:most] if not isinstance(source, Failure)]
    read = partial(decode_image, spec=backend.contract.input)
    with ThreadPoolExecutor(cpu_count()) as pool:
        images = list(pool.map(lambda source: read(source.name, source.read), candidates))
    found = [source for source, image in zip(candidates, images, strict=True) if not isinstance(image, Failure)]
    if not found:
        raise DataError("none of these images can be read, so there is nothing to measure with")
    return found


def make_load(
    sources: Sequence[Source],
    backend: Backend,
    batch: int | None,
    threads: int | None,
    round_seconds: float,
    exact: bool,
) -> Load:
    """Make a round so long that its beginning and end do not matter, judging by one trial."""
    size, threads = batch or backend.batch_size, threads or cpu_count()
    least = LEAST_BATCHES * size * backend.workers
    trial = Load(repeated(sources, 2 * size * backend.workers), size, threads, exact)
    stages = Stages(backend, trial)
    stages.together()
    rate = len(trial.sources) / timed(stages.together).clock
    wanted = max(least, round(rate * round_seconds))
    return Load(repeated(sources, -(-wanted // size) * size), size, threads, exact)


def repeated(sources: Sequence[Source], count: int) -> list[Source]:
    """Repeat the sources until there are `count`."""
    return list(itertools.islice(itertools.cycle(sources), count))


@dataclass(frozen=True)
class Throughput:
    """Everything that one run measured.

    Attributes:
        rounds: of the stages and of the yardstick.
        images: in a round.
        latencies: seconds of every batch in the end-to-end rounds.
        stage_seconds: of the last end-to-end round.
        is_shared: whether engine and decoding share the CPUs.
        gpu: during the rounds.
        peak_memory_mib: of this process so far.
    """

    rounds: Rounds
    images: int
    latencies: NDArray[np.float64]
    stage_seconds: dict[str, float]
    is_shared: bool
    gpu: GpuUsage
    peak_memory_mib: float | None

    def rate(self, stage: str) -> Estimate:
        """Return images a second."""
        return median(self.rounds.seconds[stage]).per(self.images)

    def efficiency(self) -> Estimate:
        """Return how near the whole comes to what its parts allow, 1 at best.

        On separate devices the slower part sets the pace: max(decode, engine). On shared CPUs the two take turns, and
        no schedule is faster than their sum.
        """
        times = self.rounds.seconds
        parts = times[DECODE], times[ENGINE]
        return median((sum(parts) if self.is_shared else np.maximum(*parts)) / times[TOGETHER])


def measure(backend: Backend, load: Load, plan: Plan) -> Throughput:
    """Time the stages in interleaved rounds, and the yardstick beside them."""
    stages = Stages(backend, load)
    work = {DECODE: stages.decode, ENGINE: stages.engine, TOGETHER: stages.together, YARDSTICK: yardstick}
    with watch_gpu() as gpu:
        rounds = interleave(work, plan)
    latencies = np.concatenate(stages.latencies[-rounds.count :])
    is_shared = backend.info.device.kind == "cpu"
    return Throughput(rounds, len(load.sources), latencies, stages.times.rounded(), is_shared, gpu, peak_memory_mib())


def yardstick() -> None:
    """Do a fixed piece of work on every CPU: its time changes only with the state of the machine."""
    block = bytes(_YARDSTICK_BYTES)
    with ThreadPoolExecutor(cpu_count()) as pool:
        list(pool.map(lambda _: hashlib.sha256(block).digest(), range(4 * cpu_count())))


def tables(found: Throughput, backend: Backend, load: Load) -> list[Table]:
    """Return the rates, then the latencies and where the time went."""
    rates: list[tuple[object, ...]] = [
        (name, str(found.rate(name)), float(np.median(found.rounds.cpu[name])) * 1000 / found.images)
        for name in (DECODE, ENGINE, TOGETHER)
    ]
    rule = "decode + engine, which share the CPUs" if found.is_shared else "the slower of decode and engine"
    rates.append((f"end to end, as a share of what its parts allow ({rule})", str(found.efficiency()), None))
    title = f"{backend.contract.name} on {backend.name} ({backend.device}), batch {load.batch}"
    notes = [f"Images a second with the 95% interval; {found.rounds}, {found.images} images each."]
    return [
        Table(title, ("stage", "images a second", "CPU ms an image"), rates, notes),
        _details(found, load),
    ]


def _details(found: Throughput, load: Load) -> Table:
    p50, p90, p99 = np.quantile(found.latencies, [0.5, 0.9, 0.99]) * 1000
    rows: list[tuple[object, object]] = [
        (f"a batch of {load.batch} in the engine, p50 / p90 / p99", f"{p50:.1f} / {p90:.1f} / {p99:.1f} ms"),
        *((f"seconds in {name.replace('_', ' ')}, summed over threads", s) for name, s in found.stage_seconds.items()),
        (
            "peak memory of this process",
            f"{found.peak_memory_mib:.0f} MiB" if found.peak_memory_mib else "unknown",
        ),
    ]
    if found.gpu.busy:
        rows.append(("GPU", found.gpu.in_words()))
    return Table("Batches, stages and memory, end to end", ("what", "figure"), rows)


def figures(found: Throughput, load: Load) -> dict[str, Any]:
    """Return the figures for JSON, and for `compare`."""
    return {
        "pictures": found.images,
        "batch": load.batch,
        "seconds": dict(found.rounds.seconds),
        "cpu_seconds": dict(found.rounds.cpu),
        "pictures_per_second": {name: found.rate(name) for name in (DECODE, ENGINE, TOGETHER)},
        "efficiency": found.efficiency(),
        "is_shared": found.is_shared,
        "rounds": str(found.rounds),
        "batch_seconds": dict(zip(("p50", "p90", "p99"), np.quantile(found.latencies, [0.5, 0.9, 0.99]), strict=True)),
        "stage_seconds": found.stage_seconds,
        "peak_memory_mib": found.peak_memory_mib,
        "gpu": vars(found.gpu),
    }


# What may differ between two runs without making them incomparable.
_MAY_DIFFER = {"date", "command", "load_before"}


def compare(new: dict[str, Any], old: dict[str, Any]) -> Table:
    """Show what changed beyond noise between two records of this benchmark (`conditions` and `figures`)."""
    rows = [(stage, *_change(stage, new["figures"], old["figures"])) for stage in (DECODE, ENGINE, TOGETHER, YARDSTICK)]
    notes = [f"Saved run of {old['conditions']['date']}."]
    if rows[-1][2] != _NO_CHANGE:
        notes.append(f"The machine itself was {rows[-1][2]} ({rows[-1][1]}); the other rows include that.")
    differing = sorted(
        name
        for name in (new["conditions"].keys() | old["conditions"].keys()) - _MAY_DIFFER
        if new["conditions"].get(name) != old["conditions"].get(name)
    )
    if differing:
        notes.append(f"The conditions differ: {', '.join(differing)}.")
    return Table("Against the saved run", ("stage", "times as fast", "verdict"), rows, notes)


_NO_CHANGE = "no change beyond noise"


def _change(stage: str, new: dict[str, Any], old: dict[str, Any]) -> tuple[str, str]:
    per_picture = [
        np.asarray(one["seconds"][stage], np.float64) / (1 if stage == YARDSTICK else one["pictures"])
        for one in (new, old)
    ]
    found = ratio_between_runs(per_picture[0], per_picture[1])
    if found.low <= 1 <= found.high:
        return str(found), _NO_CHANGE
    return str(found), "faster" if found.value > 1 else "slower"
