"""How a cluster run scales, by simulation: workers whose engines sleep, and the memory of the command that leads them.

A machine with few cores cannot decode for eight GPUs. So one simulated image stands for many (`sample`): the engine's
rate and the images of a piece are divided by it, while a piece takes as long as it would, and everything that happens
once per piece (its list, its marks, its part, the calls) costs what it costs. What an image costs is divided too; a
cluster has the cores for that, see `mineral_bench.studies.cost`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mineral_batch.errors import BackendError
from mineral_bench.report import Table
from mineral_bench.studies.simulated import Simulation


@dataclass(frozen=True)
class Load:
    """What is simulated.

    Attributes:
        rate: images a second of one worker's engine.
        latency: seconds of a request to the bucket.
        piece_images: images in a piece.
        sample: images that one simulated image stands for.
        pieces: of each worker.
    """

    rate: float
    latency: float
    piece_images: int
    sample: int
    pieces: int

    def simulation(self, workers: int, folder: str) -> Simulation:
        """Return the run of a number of workers, each with as much to do."""
        images = max(1, self.piece_images // self.sample)
        return Simulation(
            workers * self.pieces * images, workers, self.rate / self.sample, images, self.latency, folder
        )


@dataclass(frozen=True)
class Efficiency:
    """Runs of more and more workers.

    Attributes:
        load: of each worker.
        workers: numbers of workers.
        rates: images a second of each run, without its beginning and its end.
        whole: the same of the whole run: libraries loaded by each worker, last pieces of a few.
        driver: CPU seconds of the command for each piece.
    """

    load: Load
    workers: tuple[int, ...]
    rates: tuple[float, ...]
    whole: tuple[float, ...]
    driver: tuple[float, ...]

    @property
    def figures(self) -> tuple[float, ...]:
        """Rate of each run, as a share of that of as many runs of the first."""
        one = self.rates[0] / self.workers[0]
        return tuple(rate / n / one for n, rate in zip(self.workers, self.rates, strict=True))

    def table(self) -> Table:
        """Return one row per number of workers."""
        load = self.load
        rows = [
            (n, rate, share, rate / n / load.rate, whole / n / load.rate, 1000 * driver)
            for n, rate, share, whole, driver in zip(
                self.workers, self.rates, self.figures, self.whole, self.driver, strict=True
            )
        ]
        note = (
            f"Simulated: engines of {load.rate:g} images a second that sleep, {1000 * load.latency:g} ms for each "
            f"request, pieces of {load.piece_images} images, {load.pieces} for each worker; one image stands for "
            f"{load.sample}. Steady: without the first and the last three pieces of each worker."
        )
        columns = ("workers", "images/s, steady", "of linear", "of the engines", "whole run", "driver ms a piece")
        return Table("A cluster, by workers", columns, rows, [note])


def efficiency(load: Load, workers: Sequence[int]) -> Efficiency:
    """Measure runs of several numbers of workers, one after the other."""
    rates, whole, driver = [], [], []
    for count in workers:
        with TemporaryDirectory() as folder:
            figures = run(load.simulation(count, str(Path(folder, "out"))))
        pieces = count * load.pieces
        rates.append(figures["steady"] * load.sample)
        whole.append(pieces * load.piece_images / figures["work"])
        driver.append(figures["driver_cpu_of_work"] / pieces)
    return Efficiency(load, tuple(workers), tuple(rates), tuple(whole), tuple(driver))


@dataclass(frozen=True)
class Growth:
    """Runs of more and more objects.

    Attributes:
        latency: seconds of a page of 1,000 keys.
        objects: numbers of objects.
        runs: figures of each: see `mineral_bench.studies.simulated.simulate`.
    """

    latency: float
    objects: tuple[int, ...]
    runs: tuple[dict[str, float], ...]

    def table(self) -> Table:
        """Return one row per number of objects."""
        first = self.runs[0]["peak_mb"]
        rows = [
            (f"{n:,}", run["plan"], run["resume"], run["merge"], run["peak_mb"], run["peak_mb"] / first)
            for n, run in zip(self.objects, self.runs, strict=True)
        ]
        note = (
            f"Listing a page of 1,000 keys takes {1000 * self.latency:g} ms. Listing and cutting into pieces, the same "
            f"command again when all is done (it lists again), the merge into predictions.csv, and peak memory of the "
            f"command, Ray's and its libraries' included."
        )
        columns = ("objects", "list and plan, s", "resume, s", "merge, s", "peak MB", "times the first")
        return Table("The command that leads a cluster, by objects", columns, rows, [note])


def growth(objects: Sequence[int], latency: float) -> Growth:
    """Measure runs of several numbers of objects, with rows that nobody predicted."""
    runs = []
    for count in objects:
        with TemporaryDirectory() as folder:
            runs.append(run(Simulation(count, 1, 0, 2000, latency, str(Path(folder, "out")))))
    return Growth(latency, tuple(objects), tuple(runs))


def run(simulation: Simulation) -> dict[str, float]:
    """Simulate in a process of its own.

    Raises:
        BackendError: if it fails.
    """
    command = [sys.executable, "-m", "mineral_bench.studies.simulated", json.dumps(asdict(simulation))]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no reason given"]
        raise BackendError(f"the simulation failed: {lines[-1]}")
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures
