"""The cost of one more image, pixel, row of a batch or core, and the machine that a task needs.

Each cost is a straight line, seconds = fixed + each × amount, fitted by least squares of the relative errors: the
amounts span two orders of magnitude, and the small ones must count as much as the large ones.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.images.decode import decode_image
from mineral_batch.system import cpu_count
from mineral_bench.images import encode, photograph, write_photographs
from mineral_bench.measure import Plan, Rounds, interleave, three_digits
from mineral_bench.process.isolated import Isolated
from mineral_bench.process.runner import Runner
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import InputSpec

# (width, height) of the images whose decoding is timed.
_DECODED = ((384, 288), (800, 600), (1600, 1200), (2800, 2100), (4000, 3000))
_BATCHES = (1, 2, 4, 8, 16, 32)
_COUNTS = (16, 64, 256)
# Size of the images in the studies of counts and cores.
_COUNTED = (640, 480)
# Share of the highest rate from which more is not worth it.
_SATURATED = 0.95
# Share of a day that machines compute at most: the rest is for restarts, uneven load and other programs.
UTILIZATION = 0.7
_DAY = 86_400


@dataclass(frozen=True)
class Line:
    """seconds = fixed + each × amount.

    Attributes:
        fixed: seconds that do not depend on the amount.
        each: seconds for one more.
        worst: largest relative error of a fitted point.
    """

    fixed: float
    each: float
    worst: float

    def __call__(self, amount: float) -> float:
        """Return the seconds for an amount."""
        return self.fixed + self.each * amount

    @property
    def saturates_at(self) -> float:
        """The amount from which the rate is 95% of its limit: fixed / each × 0.95 / 0.05."""
        return max(0.0, self.fixed) / self.each * _SATURATED / (1 - _SATURATED) if self.each > 0 else float("inf")


def fit(amounts: Sequence[float], seconds: Sequence[float]) -> Line:
    """Fit a line through two or more points by least squares of the relative errors."""
    x, y = np.asarray(amounts, np.float64), np.asarray(seconds, np.float64)
    design = np.stack([1 / y, x / y], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(design, np.ones_like(y))
    return Line(float(fixed), float(each), float(np.abs((fixed + each * x) / y - 1).max()))


@dataclass(frozen=True)
class Study:
    """The cost of one thing.

    Attributes:
        title: what was varied.
        unit: of the amounts.
        amounts: the amounts measured.
        seconds: median of each.
        line: fitted to them.
        rounds: how they were measured, in words.
    """

    title: str
    unit: str
    amounts: tuple[float, ...]
    seconds: tuple[float, ...]
    line: Line
    rounds: str

    @classmethod
    def of(cls, title: str, unit: str, amounts: Sequence[float], rounds: Rounds) -> Study:
        """Make it from rounds whose candidates are the amounts, in their order."""
        medians = tuple(float(np.median(times)) for times in rounds.seconds.values())
        return cls(title, unit, tuple(amounts), medians, fit(amounts, medians), str(rounds))

    def table(self) -> Table:
        """Return one row per amount: measured and fitted."""
        rows = [
            (amount, milliseconds * 1000, self.line(amount) * 1000, amount / milliseconds)
            for amount, milliseconds in zip(self.amounts, self.seconds, strict=True)
        ]
        fixed, each = (three_digits(value * 1000) for value in (self.line.fixed, self.line.each))
        note = (
            f"ms = {fixed} + {each} × {self.unit}, at most {100 * self.line.worst:.0f}% off; {self.rounds}. "
            f"95% of the highest rate from {three_digits(self.line.saturates_at)} {self.unit}."
        )
        return Table(self.title, (self.unit, "ms", "fitted ms", f"{self.unit} a second"), rows, [note])


def by_picture_size(spec: InputSpec, plan: Plan) -> Study:
    """Measure decoding and resizing one JPEG on one thread, by megapixels."""
    contents = [encode(photograph(*size), "JPEG") for size in _DECODED]
    work = {f"{len(content)}": partial(decode_image, "", partial(bytes, content), spec) for content in contents}
    amounts = [width * height / 1e6 for width, height in _DECODED]
    return Study.of("Decoding, by image size (one thread)", "megapixels", amounts, interleave(work, plan))


def by_batch(backend: Backend, plan: Plan, batches: Sequence[int] = _BATCHES) -> Study:
    """Measure one call of the engine, by the number of images in it."""
    rng = np.random.default_rng(0)

    def filled(count: int) -> NDArray[np.uint8]:
        buffer = backend.buffer(count)
        buffer[:] = rng.integers(0, 256, buffer.shape, np.uint8)
        return buffer

    work = {str(count): partial(backend.infer, filled(count)) for count in batches}
    title = f"The engine, by batch (one call on {backend.name}, {backend.device})"
    return Study.of(title, "images", batches, interleave(work, plan))


def by_count(model: Path, backend: str, plan: Plan, counts: Sequence[int] = _COUNTS) -> Study:
    """Measure whole runs with an open model, tables and journal included, by the number of images."""
    with TemporaryDirectory() as name, Isolated(partial(Runner, model, backend)) as runner:
        folders = [_folder(Path(name, str(count)), count) for count in counts]
        work = {
            str(count): partial(runner.work, "run", [folder]) for count, folder in zip(counts, folders, strict=True)
        }
        return Study.of("Whole runs, by the number of images", "images", counts, interleave(work, plan))


def _folder(folder: Path, count: int) -> str:
    folder.mkdir()
    write_photographs(folder, count, _COUNTED)
    return str(folder)


@dataclass(frozen=True)
class Cores:
    """Whole runs on fewer cores.

    Attributes:
        cores: numbers of cores.
        rates: images a second of each.
        serial: share of one core's time that more cores do not shorten (Amdahl's law), fitted; 0 at best.
        rounds: how they were measured, in words.
    """

    cores: tuple[int, ...]
    rates: tuple[float, ...]
    serial: float
    rounds: str

    def table(self) -> Table:
        """Return one row per number of cores."""
        rows = [
            (n, rate, rate / self.rates[0], rate / self.rates[0] / n)
            for n, rate in zip(self.cores, self.rates, strict=True)
        ]
        limit = f"{1 / self.serial:.0f} times one core" if self.serial > 0 else "none within what was tried"
        note = f"Serial share by Amdahl's law {100 * self.serial:.1f}%, hence a limit of {limit}; {self.rounds}."
        return Table(
            "Whole runs, by cores",
            ("cores", "images a second", "times one core", "share of ideal"),
            rows,
            [note],
        )


def by_cores(model: Path, backend: str, plan: Plan, pictures: int = 64) -> Cores | None:
    """Measure the same run on 1, 2, 4, ... cores; None if the system cannot confine a process, or has one core."""
    most = cpu_count()
    if not hasattr(os, "sched_setaffinity") or most < 2:
        return None
    tried = sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = _folder(Path(name, "photos"), pictures)
        runners = [stack.enter_context(Isolated(partial(Runner, model, backend, cores=n))) for n in tried]
        work = {str(n): partial(runner.work, "run", [folder]) for n, runner in zip(tried, runners, strict=True)}
        rounds = interleave(work, plan)
    seconds = np.array([np.median(times) for times in rounds.seconds.values()])
    # seconds(n) = serial + parallel / n, a line in 1 / n.
    line = fit([1 / n for n in tried], seconds.tolist())
    serial = min(1.0, max(0.0, line.fixed / (line.fixed + line.each)))
    return Cores(tuple(tried), tuple((pictures / seconds).tolist()), serial, str(rounds))


@dataclass(frozen=True)
class Sizing:
    """The machine that a task needs, from the costs measured here.

    Attributes:
        decode: core-seconds to decode an image.
        engine: seconds of one device, or core-seconds on the CPU, to predict an image.
        is_gpu: whether the engine has a device of its own.
    """

    decode: float
    engine: float
    is_gpu: bool

    def needs(self, per_day: float) -> tuple[float, float]:
        """Return (cores, GPUs) that are busy 70% of the day; fractions, to be rounded up."""
        rate = per_day / _DAY / UTILIZATION
        return (rate * self.decode, rate * self.engine) if self.is_gpu else (rate * (self.decode + self.engine), 0.0)

    def table(self, per_day: Sequence[int], megapixels: float) -> Table:
        """Return one row per task."""
        rows = [
            (
                f"{n:,}",
                three_digits(n / _DAY),
                three_digits(cores),
                three_digits(gpus) if self.is_gpu else "-",
            )
            for n in per_day
            for cores, gpus in [self.needs(n)]
        ]
        device = "GPU" if self.is_gpu else "core"
        note = (
            f"For images of {megapixels:g} megapixels: {three_digits(1000 * self.decode)} core-milliseconds to "
            f"decode and {three_digits(1000 * self.engine)} {device}-milliseconds to predict; machines busy "
            f"{UTILIZATION:.0%} of the day. Cores and GPUs are those of this machine."
        )
        return Table("Sizing", ("images a day", "a second", "cores", "GPUs"), rows, [note])


def sizing(decoding: Study, engine: Study, backend: Backend, megapixels: float) -> Sizing:
    """Compute it from the fitted costs; on the CPU a call of the engine holds its share of the cores."""
    is_gpu = backend.info.device.kind == "gpu"
    held = 1.0 if is_gpu else cpu_count() / backend.workers
    return Sizing(decoding.line(megapixels), engine.line.each * held, is_gpu)


def figures(studies: Sequence[Study | Cores | None]) -> list[dict[str, Any]]:
    """Return the figures for JSON."""
    return [vars(one) | ({"line": vars(one.line)} if isinstance(one, Study) else {}) for one in studies if one]
