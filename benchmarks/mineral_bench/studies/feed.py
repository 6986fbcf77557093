"""How many images a second the pipeline can feed to an engine, and what limits it.

The engine is a null engine: it takes the time of a given rate, computes nothing and holds no lock. What remains is
reading, decoding, resizing and handing over. Each way to do that runs in a process of its own on a limited number of
cores, so that its cost per core can be extrapolated to larger machines, and the extrapolation checked on this one.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch import pipeline
from mineral_batch.engines.base import Engine, EngineInfo
from mineral_batch.errors import BackendError
from mineral_batch.images.discover import find_sources
from mineral_batch.images.processes.pool import DecodeProcesses, is_supported
from mineral_batch.model.contract import InputSpec, ModelContract
from mineral_batch.system import cpu_count
from mineral_bench.baselines.loaders import LOADERS
from mineral_bench.measure import Estimate, Plan, Rounds, interleave, median
from mineral_bench.process.interpreter_lock import share_with_lock
from mineral_bench.process.isolated import Isolated, IsolatedError
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mineral_batch.types import Pixels, Probabilities

THREADS, PROCESSES = "mineral-batch, decode threads", "mineral-batch, decode processes"
_BATCH = 64
_LABELS = 36


class NullEngine(Engine):
    """An engine that takes the time of a given rate and computes nothing.

    Args:
        side: of its square input, pixels.
        rate: images a second; 0 for an engine that takes no time.
    """

    name = "null"

    def __init__(self, side: int, rate: float) -> None:
        labels = tuple(f"label {index}" for index in range(_LABELS))
        contract = ModelContract(labels, (0.5,) * _LABELS, InputSpec(side, side), name="null engine")
        super().__init__(contract, EngineInfo("null engine", "float32"), batch_size=_BATCH)
        self._seconds_per_image = 1 / rate if rate else 0.0

    def compute(self, pixels: Pixels) -> Probabilities:
        """Sleep; see `Engine`."""
        if self._seconds_per_image:
            time.sleep(len(pixels) * self._seconds_per_image)
        return np.zeros((len(pixels), _LABELS), np.float32)


@dataclass(frozen=True)
class FeedLoad:
    """What is fed.

    Attributes:
        paths: image files of a round.
        side: of the engine's square input, pixels.
        rate: images a second that the engine takes; 0 for no limit.
    """

    paths: tuple[str, ...]
    side: int
    rate: float = 0.0


class Feeder:
    """One way to feed, made by `mineral_bench.process.isolated.Isolated`.

    Args:
        way: a name in `ways()`.
        load: what is fed.
        cores: the process and its children may use so many; set before anything counts them.
    """

    def __init__(self, way: str, load: FeedLoad, cores: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        self._load, self._engine = load, NullEngine(load.side, load.rate)
        self._stack = ExitStack()
        self._run: Callable[[], int] = self._start(way, cores)

    def _start(self, way: str, cores: int) -> Callable[[], int]:
        if way in LOADERS:
            loader = LOADERS[way](self._load.paths, self._load.side, _BATCH, cores)
            return lambda: sum(len(self._engine.infer(batch)) for batch in loader)
        if way not in (THREADS, PROCESSES):
            raise BackendError(f"there is no such way: {', '.join(ways())}")
        processes = None
        if way == PROCESSES:
            processes = self._stack.enter_context(closing(DecodeProcesses(self._engine.contract.input, count=cores)))
        return partial(self._through_pipeline, processes)

    def _through_pipeline(self, processes: DecodeProcesses | None) -> int:
        sources = find_sources(self._load.paths)
        with closing(
            pipeline.run(sources, self._engine, batch_size=_BATCH, processes=processes, decode_threads=cpu_count())
        ) as results:
            return sum(1 for _ in results)

    def round(self) -> int:
        """Feed all images once; returns how many."""
        return self._run()


def ways() -> list[str]:
    """Return the names of the ways that work on this system."""
    ours = [THREADS, *([PROCESSES] if is_supported() else [])]
    return [*ours, *LOADERS]


@dataclass(frozen=True)
class Feed:
    """The figures of one way on so many cores.

    Attributes:
        way: its name.
        cores: that it could use; one decode thread or process for each.
        rate: images a second.
        cpu: CPU seconds for an image, over all its processes.
        held: CPU seconds for an image in which the engine's process held the interpreter lock; None if not measured.
    """

    way: str
    cores: int
    rate: Estimate
    cpu: float
    held: float | None = None

    @property
    def ceiling(self) -> float | None:
        """Images a second that one interpreter cannot exceed with any number of cores."""
        return 1 / self.held if self.held else None


@dataclass(frozen=True)
class FeedResult:
    """All figures.

    Attributes:
        feeds: of each way on each number of cores.
        images: in a round.
        rounds: how they were measured.
        notes: what could not be measured, and why.
    """

    feeds: tuple[Feed, ...]
    images: int
    rounds: Rounds
    notes: tuple[str, ...]


def measure(load: FeedLoad, plan: Plan, names: Sequence[str] | None = None) -> FeedResult:
    """Time every way on 1, 2, 4, ... cores in interleaved rounds, then sample the lock of each on all cores.

    A quarter of the time goes to the samples.
    """
    most = cpu_count()
    cores = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    notes: list[str] = []
    with ExitStack() as stack:
        opened = _open(load, names or ways(), cores, stack, notes)
        candidates = {key: partial(process.work, "round") for key, process in opened.items()}
        limits = Plan(plan.least, plan.most, 0.75 * plan.seconds, plan.tolerance, plan.warm_up)
        rounds = interleave({f"{way}, {n}": work for (way, n), work in candidates.items()}, limits)
        seconds = 0.25 * plan.seconds / max(1, len({way for way, _ in opened}))
        held = {way: _held(opened[way, n], len(load.paths), seconds, way, notes) for way, n in opened if n == most}
    feeds = tuple(
        Feed(
            way,
            n,
            median(rounds.seconds[f"{way}, {n}"]).per(len(load.paths)),
            float(np.median(rounds.cpu[f"{way}, {n}"])) / len(load.paths),
            held[way] if n == most else None,
        )
        for way, n in opened
    )
    return FeedResult(feeds, len(load.paths), rounds, tuple(dict.fromkeys(notes)))


def _open(
    load: FeedLoad, names: Sequence[str], cores: Sequence[int], stack: ExitStack, notes: list[str]
) -> dict[tuple[str, int], Isolated]:
    opened = {}
    for way in names:
        for count in cores:
            try:
                process = stack.enter_context(Isolated(partial(Feeder, way, load, count)))
                fed = process.call("round").value
            except IsolatedError as error:
                notes.append(f"Not here: {way}: {error}.")
                break
            if fed != len(load.paths):
                notes.append(f"Not here: {way}: it gave {fed} of {len(load.paths)} images.")
                break
            opened[way, count] = process
    return opened


def _held(process: Isolated, images: int, seconds: float, way: str, notes: list[str]) -> float | None:
    """Return the CPU seconds for an image in which the process holds its interpreter lock."""
    rounds: list[float] = []

    def work() -> None:
        rounds.append(process.call("round").own_cpu_seconds)

    try:
        share = share_with_lock(process.pid, seconds, work)
    except IsolatedError as error:
        notes.append(f"The lock was not measured for {way}: {error}.")
        return None
    return share * float(np.median(rounds)) / images


def predicted(result: FeedResult, way: str, cores: int, rate: float = 0.0) -> float:
    """Predict images a second of a way on so many cores: the least of CPUs, interpreter lock and engine.

    The CPU time for an image is that on one core; the lock's that on all cores of this machine.
    """
    feeds = [feed for feed in result.feeds if feed.way == way]
    limits = [cores / feeds[0].cpu, *(feed.ceiling for feed in feeds if feed.ceiling), *([rate] if rate else [])]
    return min(limits)


def errors(result: FeedResult, way: str, rate: float = 0.0) -> tuple[float, float] | None:
    """Return how far the prediction for all cores of this machine is off: by CPU time, and by the clock.

    By CPU time it is the change of an image's cost from one core to all; by the clock it includes what other programs
    took. None with one core.
    """
    feeds = [feed for feed in result.feeds if feed.way == way]
    if len(feeds) < 2:
        return None
    first, last = feeds[0], feeds[-1]
    return last.cpu / first.cpu - 1, predicted(result, way, last.cores, rate) / last.rate.value - 1


def tables(result: FeedResult, load: FeedLoad, cores: Sequence[int]) -> list[Table]:
    """Return what was measured, then the extrapolation."""
    rows = [
        (
            feed.way,
            feed.cores,
            str(feed.rate),
            1000 * feed.cpu,
            None if feed.held is None else 1000 * feed.held,
            None if feed.ceiling is None else round(feed.ceiling),
        )
        for feed in result.feeds
    ]
    engine = f"takes {load.rate:g} images a second" if load.rate else "takes no time"
    notes = [
        f"The null engine {engine}; batches of {_BATCH}, one decode thread or process per core. {result.rounds}, "
        f"{result.images} images each. The lock is that of the process that owns the engine, in CPU time; the "
        "ceiling is what its interpreter allows with any number of cores.",
        *result.notes,
    ]
    columns = (
        "way",
        "cores",
        "images a second",
        "CPU ms an image",
        "lock held, ms an image",
        "ceiling, images a second",
    )
    return [Table("Feeding an engine", columns, rows, notes), _extrapolation(result, load, cores)]


def _extrapolation(result: FeedResult, load: FeedLoad, cores: Sequence[int]) -> Table:
    rows = [
        (
            way,
            *(round(predicted(result, way, count, load.rate)) for count in cores),
            *_percent(errors(result, way, load.rate)),
        )
        for way in dict.fromkeys(feed.way for feed in result.feeds)
    ]
    note = (
        "The least of cores / CPU time of an image on one core, the ceiling, and the engine's rate; memory, disk and "
        "bus are not in it. The errors are those of the same prediction for all cores of this machine: by the change "
        "of an image's CPU time from one core to all, and by the clock, which other programs disturb."
    )
    columns = ("way", *(f"{count} cores" for count in cores), "error by CPU time", "by the clock")
    return Table("Images a second, extrapolated", columns, rows, [note])


def _percent(values: tuple[float, float] | None) -> tuple[str, str]:
    return ("", "") if values is None else (f"{100 * values[0]:+.0f}%", f"{100 * values[1]:+.0f}%")


def figures(result: FeedResult, cores: Sequence[int], rate: float) -> dict[str, Any]:
    """Return the figures for JSON."""
    names = dict.fromkeys(feed.way for feed in result.feeds)
    extrapolated: Mapping[str, Any] = {
        way: {str(count): predicted(result, way, count, rate) for count in cores}
        | {"errors": errors(result, way, rate)}
        for way in names
    }
    return {
        "feeds": [vars(feed) | {"ceiling": feed.ceiling} for feed in result.feeds],
        "images": result.images,
        "rounds": str(result.rounds),
        "extrapolated": extrapolated,
        "notes": list(result.notes),
    }
