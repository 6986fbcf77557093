"""`mineral-batch predict --cluster`: the pieces of a run on a Ray cluster."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import click

from mineral_batch.cli.console import say
from mineral_batch.cli.logs import Log
from mineral_batch.cli.opening import describe_model, describe_passed_over, describe_starter, describe_uncalibrated
from mineral_batch.cli.pieces import PiecesRun
from mineral_batch.cli.signals import Stop
from mineral_batch.cluster.connection import LOCAL, Head, connected
from mineral_batch.cluster.crew import Crew
from mineral_batch.cluster.identity import Identity
from mineral_batch.cluster.on_ray import RayWorkforce
from mineral_batch.cluster.place import Place
from mineral_batch.cluster.run import PiecesSummary, work_on_cluster
from mineral_batch.cluster.shards import Shard
from mineral_batch.cluster.sizes import ClusterOptions, describe_share, sized
from mineral_batch.cluster.work import PieceReport
from mineral_batch.cluster.worker import Opened, WorkerOptions
from mineral_batch.images.decoder import AUTO
from mineral_batch.model.contract import ModelContract
from mineral_batch.results.corrections import check_prevalence
from mineral_batch.results.inputs import Inputs, expand_lists
from mineral_batch.results.manifest import describe_software
from mineral_batch.storage.urls import is_url, restored
from mineral_batch.types import Failure, Source
from mineral_batch.words import counted

_Command = TypeVar("_Command", bound=Callable[..., Any])
_WORKERS = re.compile(r"(?:(\d+)-)?(\d+)")
# Inputs that are checked on every machine.
_CHECKED_INPUTS = 100


def _workers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """`16` -> (1, 16); `4-16` -> (4, 16)."""
    del ctx, parameter
    if value is None:
        return None
    match = _WORKERS.fullmatch(value.strip())
    least, most = (int(match[1] or 1), int(match[2])) if match else (0, 0)
    if not 1 <= least <= most:
        raise click.BadParameter(f"'{value}' is not a number of workers: write 16 for at most 16, 4-16 to begin with 4")
    return least, most


def _gpus(ctx: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Check what Ray can hand out: a share of one GPU, or whole ones."""
    del ctx, parameter
    if value is not None and value > 1 and not value.is_integer():
        raise click.BadParameter(
            f"{value:g} is no number of GPUs: write a share below 1, such as 0.5, or a whole number"
        )
    return value


_OPTIONS = (
    click.option(
        "--cluster",
        metavar="ADDRESS|local",
        help="Work on a Ray cluster: auto, HOST:6379 or ray://HOST:10001; local starts one on this machine.",
    ),
    click.option(
        "--workers",
        metavar="[LEAST-]MOST",
        callback=_workers,
        help="Number of workers on the cluster; 4-16: start when 4 are ready. [default: as many as there is room for]",
    ),
    click.option(
        "--worker-cpus",
        type=click.FloatRange(0.1, 4096),
        help="CPUs per worker. [default: those of the smallest machine less one, at most 8, or its share for a GPU]",
    ),
    click.option(
        "--worker-gpus",
        type=click.FloatRange(0, 64),
        callback=_gpus,
        help="GPUs per worker; 0.5: two workers share a GPU. [default: 1 if the cluster has GPUs, else 0]",
    ),
)


def cluster_options(command: _Command) -> _Command:
    """Give a command the options `cluster`, `workers`, `worker_cpus` and `worker_gpus`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_cluster_options(
    address: str | None, workers: tuple[int, int] | None, cpus: float | None, gpus: float | None
) -> ClusterOptions | None:
    """Return where to run; None for this machine.

    Raises:
        click.UsageError: if there are workers without a cluster.
    """
    if address is None:
        for name, value in (("--workers", workers), ("--worker-cpus", cpus), ("--worker-gpus", gpus)):
            if value is not None:
                raise click.UsageError(f"{name} is for a run on a cluster: name it with --cluster, such as local")
        return None
    least, most = workers or (1, None)
    return ClusterOptions(address, least, most, cpus, gpus)


@dataclass(frozen=True)
class OnCluster:
    """Works on pieces with the engines of a cluster; see `mineral_batch.cli.pieces.Workers`.

    Attributes:
        cluster: where.
        model: as named; None for the starter model.
        engine: options of `Predictor`.
    """

    cluster: ClusterOptions
    model: str | None
    engine: Mapping[str, Any]

    @classmethod
    def of(
        cls, cluster: ClusterOptions, model: str | Path | None, engine: Mapping[str, Any], shard: str | None
    ) -> OnCluster:
        """Make it from the command's options.

        Raises:
            click.UsageError: if options exclude each other.
        """
        if shard is not None:
            raise click.UsageError("--shard is for machines without a cluster: leave it out, --cluster does all pieces")
        if engine["decode"] == AUTO:
            raise click.UsageError("--decode auto measures on one machine: name cpu or gpu for a cluster")
        if engine["devices"]:
            raise click.UsageError("--devices is for one machine: a cluster hands out GPUs by --worker-gpus")
        return cls(cluster, None if model is None else str(model), engine)

    def __call__(self, run: PiecesRun, place: Place, shard: Shard, given: Inputs, stop: Stop) -> PiecesSummary:
        """See `mineral_batch.cli.pieces.Workers`."""
        del shard  # a cluster does all
        with connected(self.cluster.address) as connection, stop:
            cluster = sized(connection.ray, self.cluster)
            workforce = RayWorkforce(connection, cluster, self._worker_options(run, given))
            with Crew(workforce, cluster.most or 1, tell=_tell, joined=_Joined(run.log), stop=stop) as crew:
                first = crew.open(cluster.least)
                if first is None:
                    return PiecesSummary(stopped=True)
                self._introduce(first, cluster, run)
                plan = run.plan(partial(_given, first.identity, connection.head), place, given, cluster.most or 1)
                with run.progress(plan.images) as progress:
                    progress.count(reused=plan.images - sum(piece.images for piece in plan.to_do(place)))

                    def finished(report: PieceReport) -> None:
                        run.log.piece(report)
                        if not report.left:
                            progress.count(new=report.images, failed=report.failed)

                    return work_on_cluster(crew, place, plan, finished=finished, stop=stop)

    def _worker_options(self, run: PiecesRun, given: Inputs) -> WorkerOptions:
        first = islice(expand_lists(given.existing), _CHECKED_INPUTS)
        local = [name for name in first if not is_url(name) and Path(name).exists()]
        return WorkerOptions(restored(run.output), str(Path.cwd()), local, self.model, self.engine, run.mixed)

    def _introduce(self, first: Opened, cluster: ClusterOptions, run: PiecesRun) -> None:
        contract, model = ModelContract.from_json(first.identity.contract), Path(first.identity.model["file"])
        check_prevalence(contract, model, run.tables)
        if not run.quiet:
            run.log.line(f"{describe_model(contract)}, {first.engine['backend']} on {first.engine['device']}")
            for line in describe_passed_over(first.engine["passed_over"], has_gpu=bool(cluster.gpus)):
                run.log.line(line)
            share = describe_share(cluster.cpus or 0, cluster.gpus or 0)
            name = "Local cluster" if cluster.address == LOCAL else f"Cluster {cluster.address}"
            each = " each" if (cluster.most or 1) > 1 else ""
            run.log.line(f"{name}: up to {counted(cluster.most or 1, 'worker')} with {share}{each}")
            if self.model is None:
                run.log.line(describe_starter(contract))
        if not first.is_calibrated:
            run.log.line(describe_uncalibrated(model))


def _given(
    identity: Identity, head: Head, sources: Iterator[Source | Failure], earlier: str | None = None
) -> tuple[Identity, Iterator[Source | Failure]]:
    del earlier
    return identity, _watched(head, sources)


def _watched(head: Head, sources: Iterator[Source | Failure]) -> Iterator[Source | Failure]:
    """Yield the sources; end the run if the head of the cluster is lost while they are listed."""
    for source in sources:
        head.check()
        yield source


@dataclass
class _Joined:
    """Logs each worker; warns once of a release that is not this machine's."""

    log: Log
    warned: bool = False

    def __call__(self, opened: Opened) -> None:
        self.log.event("worker", host=opened.host, engine=dict(opened.engine), versions=dict(opened.versions))
        theirs, ours = opened.versions.get("mineral-batch"), describe_software()["mineral-batch"]
        if theirs != ours and not self.warned:
            self.warned = True
            _tell(f"{opened.host} has mineral-batch {theirs}, this machine {ours}")


def _tell(line: str) -> None:
    say(f"Warning: {line}", err=True)
