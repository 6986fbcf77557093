"""A cluster whose engines sleep and whose bucket is made up; scheduling, plan, pipeline, parts and merge are real.

`python -m mineral_bench.studies.simulated` does one run and prints its figures as JSON, so that each run's peak memory
is that of a process of its own.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage

from mineral_batch.cluster import worker as workers
from mineral_batch.cluster.connection import LOCAL, connected
from mineral_batch.cluster.crew import Crew
from mineral_batch.cluster.merge import merge
from mineral_batch.cluster.on_ray import RayWorker, RayWorkforce
from mineral_batch.cluster.parts import decode_images, encode_part
from mineral_batch.cluster.place import Folder
from mineral_batch.cluster.run import make_plan, work_on_cluster
from mineral_batch.cluster.sizes import ClusterOptions
from mineral_batch.cluster.work import PieceReport
from mineral_batch.cluster.worker import Opened, Refusal, WorkerOptions
from mineral_batch.engines.registry import BACKENDS
from mineral_batch.errors import BackendError
from mineral_batch.images import remote
from mineral_batch.results.fingerprint import shared_fingerprint
from mineral_batch.results.inputs import Inputs
from mineral_batch.results.manifest import describe_engine, describe_software
from mineral_batch.storage.interface import Check, Entry
from mineral_batch.types import Prediction
from mineral_bench.studies.feed import NullEngine

if TYPE_CHECKING:
    from mineral_batch.cluster.identity import Identity
    from mineral_batch.cluster.plan import Piece
    from mineral_batch.storage.urls import Url

_PHOTOS = "s3://simulated/photos/"
_PAGE = 1000  # keys that a store lists at once, as S3 does
_SIDE = 32


@dataclass(frozen=True)
class Simulation:
    """One run.

    Attributes:
        objects: in the bucket.
        workers: at work.
        rate: images a second that an engine takes; 0 to write made-up rows without any pipeline.
        piece_images: images in a piece.
        latency: seconds of every request to the bucket, and of every page of its listing.
        folder: where plan and parts are written; requests there take as long.
    """

    objects: int
    workers: int
    rate: float
    piece_images: int
    latency: float
    folder: str


class SimulatedStore:
    """A bucket in which every object is the same photograph; see `mineral_batch.storage.interface.Store`."""

    root = "s3://simulated"

    def __init__(self, simulation: Simulation) -> None:
        buffer = io.BytesIO()
        PILImage.fromarray(np.full((_SIDE, _SIDE, 3), 90, np.uint8)).save(buffer, "JPEG")
        self._content, self._simulation = buffer.getvalue(), simulation

    def list(self, prefix: str = "", *, after: str = "") -> Iterator[Entry]:
        """Yield all objects, a page at a time."""
        del after
        for index in range(self._simulation.objects):
            if index % _PAGE == 0:
                time.sleep(self._simulation.latency)
            yield self._entry(f"{prefix}{index // 10_000:04}/{index:09}.jpg")

    def get(self, key: str, check: Check | None = None) -> bytes:
        """Return the photograph."""
        time.sleep(self._simulation.latency)
        if check is not None:
            check(self._entry(key))
        return self._content

    def _entry(self, key: str) -> Entry:
        return Entry(key, len(self._content), 1_700_000_000_000_000_000, "etag")


class _SlowFolder(Folder):
    def __init__(self, folder: str, latency: float) -> None:
        super().__init__(folder)
        self._latency = latency

    def get(self, key: str) -> bytes | None:
        time.sleep(self._latency)
        return super().get(key)

    def put(self, key: str, content: bytes, *, create_only: bool = True) -> bool:
        time.sleep(self._latency)
        return super().put(key, content, create_only=create_only)

    def delete(self, key: str) -> None:
        time.sleep(self._latency)
        super().delete(key)


@dataclass(frozen=True)
class _Options(WorkerOptions):
    simulation: Simulation | None = None


class SimulatedWorker(RayWorker):
    """An actor whose engine sleeps."""

    def __init__(self, options: _Options) -> None:
        super().__init__(options)
        assert options.simulation is not None
        self._simulation = options.simulation

    def open(self) -> Opened | Refusal:
        """Put the simulation in the place of engine, bucket and output."""
        _rate[0] = self._simulation.rate
        BACKENDS["null"] = f"{__name__}:open_null"
        _simulate_bucket(self._simulation)
        vars(workers)["open_place"] = partial(_SlowFolder, latency=self._simulation.latency)
        return super().open()

    def work(self, piece: Piece) -> PieceReport | Refusal:
        """Do a piece, or write rows that nobody predicted."""
        return super().work(piece) if self._simulation.rate else self._made_up(piece)

    def _made_up(self, piece: Piece) -> PieceReport:
        place, predictor = Folder(self._simulation.folder), self._predictor
        assert predictor is not None
        images = decode_images(place.get(piece.planned) or b"", piece.id)
        values = np.random.default_rng(0).random((len(images), len(predictor.contract.labels)), np.float32)
        results = [Prediction(image.name, row, 1, 1) for image, row in zip(images, values, strict=True)]
        decoder, _ = predictor.choose_decoder(iter(()))
        certificate = {
            "fingerprint": shared_fingerprint(predictor, decoder),
            "engine": describe_engine(predictor),
            "versions": describe_software(),
            "machine": {},
            "seconds": 0,
            "stage_seconds": {},
        }
        place.put(piece.part, encode_part(images, results, certificate))
        return PieceReport(piece.id, piece.images)


_rate = [0.0]


def open_null(path: Path, options: object) -> NullEngine:
    """Open the engine that sleeps."""
    del path, options
    return NullEngine(_SIDE, _rate[0])


def _simulate_bucket(simulation: Simulation) -> None:
    store = SimulatedStore(simulation)

    def open_store(url: Url) -> Any:
        del url
        return store

    vars(remote)["open_store"] = open_store


def simulate(simulation: Simulation) -> dict[str, float]:
    """Do one run; return seconds of each step, CPU seconds and peak memory of this process."""
    _simulate_bucket(simulation)
    place = Folder(simulation.folder)
    options = _Options(
        simulation.folder, str(Path.cwd()), engine={"backend": "null", "decode_threads": 1}, simulation=simulation
    )
    figures: dict[str, float] = {}
    with connected(LOCAL) as connection:
        workforce = RayWorkforce(connection, ClusterOptions(LOCAL, cpus=0.1, gpus=0), options, SimulatedWorker)
        with Crew(workforce, simulation.workers) as crew:
            first = crew.open(simulation.workers)
            if first is None:
                raise BackendError("no worker opened")
            _run(simulation, place, crew, first.identity, figures)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {**figures, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1024}


def _run(simulation: Simulation, place: Folder, crew: Crew, identity: Identity, figures: dict[str, float]) -> None:
    def identify(sources: Any, earlier: str | None = None) -> Any:
        del earlier
        return identity, sources

    inputs = Inputs((_PHOTOS,), (_PHOTOS,), (), ())
    with _timed(figures, "plan"):
        plan = make_plan(identify, place, inputs, piece_images=simulation.piece_images)
    cpu, moments = time.process_time(), [time.monotonic()]
    with _timed(figures, "work"):
        summary = work_on_cluster(crew, place, plan, finished=lambda report: moments.append(time.monotonic()))
    figures["driver_cpu_of_work"] = time.process_time() - cpu
    figures["steady"] = simulation.piece_images * steady_rate(moments, simulation.workers)
    if summary.images != simulation.objects:
        raise BackendError(f"{summary.images} of {simulation.objects} images: {summary.left or summary}")
    if not simulation.rate:
        with _timed(figures, "merge"):
            merge(place)
        with _timed(figures, "resume"):
            plan = make_plan(identify, place, inputs, piece_images=simulation.piece_images, relist=True)
            work_on_cluster(crew, place, plan)


def steady_rate(moments: Sequence[float], workers: int) -> float:
    """Return pieces a second without the first and the last three of each worker: the run's beginning and its end.

    Args:
        moments: when the work began, then when each piece was finished, in this order.
        workers: at work.
    """
    edge = 3 * workers
    middle = moments[edge:-edge] if len(moments) > 3 * edge else moments
    return (len(middle) - 1) / (middle[-1] - middle[0])


@contextmanager
def _timed(figures: dict[str, float], name: str) -> Iterator[None]:
    clock = time.monotonic()
    yield
    figures[name] = time.monotonic() - clock


if __name__ == "__main__":
    # By its real name, so that the actors find it.
    from mineral_bench.studies.simulated import Simulation, simulate

    print(json.dumps(simulate(Simulation(**json.loads(sys.argv[1])))))  # noqa: T201 - for the process that asked
