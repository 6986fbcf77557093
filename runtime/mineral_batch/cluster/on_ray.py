"""Ray carries the calls of a cluster run: one actor for each worker.

Ray Core, not Ray Data. Ray Data would need pandas and read tasks beside the actors, which starve when the actors hold
the last CPU (ray-project/ray#44687); it hangs when actors die with `max_errored_blocks=-1` (#62746) and retries
blindly. Here `mineral_batch.cluster.crew` sees each death and decides: Ray itself retries neither actors nor calls.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import floor
from typing import Any
from urllib.parse import urlsplit

from mineral_batch.cluster.crew import WorkerLostError
from mineral_batch.cluster.plan import Piece
from mineral_batch.cluster.work import PieceReport
from mineral_batch.cluster.worker import IN_HAND, Refusal, Worker, WorkerOptions
from mineral_batch.errors import BackendError, DataError
from mineral_batch.system import pip_install

#: Starts a cluster on this machine, for the time of the run.
LOCAL = "local"
# The smallest object store that Ray accepts is 75 MB; nothing passes through it.
_OBJECT_STORE = 80_000_000
# By default a worker has no more: decoding threads and engine threads of one process get into each other's way.
_CPUS_OF_A_WORKER = 8
_SECONDS_TO_ANSWER = 5.0
# RFC 9113, 3.4: what a client sends first, with an empty SETTINGS frame; the server answers with a SETTINGS frame. Ray
# speaks gRPC, which is HTTP/2.
_HTTP2_SETTINGS = b"\x04"
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _HTTP2_SETTINGS + bytes(5)


@dataclass(frozen=True)
class ClusterOptions:
    """Where and how widely to run.

    Attributes:
        address: of a Ray cluster, such as `auto`, `10.0.0.1:6379` or `ray://head:10001`; `local` starts one here.
        least: workers that must be open before the first piece is done.
        most: workers at a time; None for as many as there is room for now.
        cpus: of each worker; None for those of the smallest machine, 8 at most.
        gpus: of each worker, a fraction if several share one; None for one if the cluster has any.
    """

    address: str = LOCAL
    least: int = 1
    most: int | None = None
    cpus: float | None = None
    gpus: float | None = None


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a cluster, or start one; yields the module `ray`.

    Raises:
        DataError: if Ray is not installed.
        BackendError: if the cluster does not answer.
    """
    if find_spec("ray") is None:
        raise DataError(f"--cluster needs Ray, which is not installed: {pip_install('ray')}")
    options: dict[str, Any] = {"address": address}
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    else:
        _check_answers(address)
    # Read when Ray is imported: hide GPUs from actors that ask for none, as its next release does.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # whatever Ray raises for a bad address, an old version, a missing package
        raise BackendError(f"no Ray cluster at {address}: {_first_line(error)}") from None
    with suppress(AttributeError):  # what the raylets print, such as the death of a worker, is told in our words
        ray._private.worker._worker_logs_enabled = False
    try:
        yield ray
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _check_answers(address: str) -> None:
    """Ray itself tries for minutes."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or (port is None and address != "auto"):
        raise BackendError(
            f"'{address}' is no address of a Ray cluster: write local, auto, HOST:6379 or ray://HOST:10001"
        )
    if port is None:
        return
    try:
        with socket.create_connection((host, port), timeout=_SECONDS_TO_ANSWER) as connection:
            connection.settimeout(_SECONDS_TO_ANSWER)
            connection.sendall(_HTTP2_PREFACE)
            answer = connection.recv(9)
    except OSError as error:
        raise BackendError(f"no Ray cluster at {address}: {error.strerror or error}") from None
    if answer[3:4] != _HTTP2_SETTINGS:
        raise BackendError(f"no Ray cluster at {address}: something else answers there; Ray's own port is 6379")


def sized(ray: Any, options: ClusterOptions) -> ClusterOptions:
    """Fill in what the user left open.

    Raises:
        BackendError: if no machine has room for a worker and nobody said that there will be one.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = options.gpus if options.gpus is not None else float(any(node.get("GPU", 0) >= 1 for node in nodes))
    able = [node for node in nodes if node.get("GPU", 0) >= gpus and node.get("CPU", 0) >= (options.cpus or 1)]
    cpus = options.cpus if options.cpus is not None else _default_cpus(able, gpus)
    fitting = sum(_fitting(node, cpus, gpus) for node in able)
    total = sum(node.get("CPU", 0) for node in nodes)
    if fitting * cpus > total - 1:  # the last CPU is for Ray and for this process
        fitting = max(1, floor((total - 1) / cpus)) if able else 0
    if not fitting and options.most is None:
        raise BackendError(
            f"no machine of the cluster has room for a worker of {describe_share(cpus, gpus)} (the cluster has "
            f"{describe_room(nodes)}): ask for less with --worker-cpus and --worker-gpus, or name --workers to wait"
        )
    return replace(options, most=options.most or max(fitting, options.least), cpus=cpus, gpus=gpus)


def _default_cpus(nodes: Sequence[Mapping[str, float]], gpus: float) -> float:
    """A whole machine's CPUs, or its share for each of its GPUs; one CPU is left over where there are more."""
    shares = [(node["CPU"] - (node["CPU"] > 1)) / (max(1, node.get("GPU", 0) / gpus) if gpus else 1) for node in nodes]
    smallest = max(1, floor(min(shares, default=1)))
    return smallest if gpus else min(smallest, _CPUS_OF_A_WORKER)


def _fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    by_cpus = node.get("CPU", 0) / cpus if cpus else float("inf")
    by_gpus = node.get("GPU", 0) / gpus if gpus else float("inf")
    return floor(min(by_cpus, by_gpus, node.get("CPU", 0) * 4))


def describe_share(cpus: float, gpus: float) -> str:
    """`8 CPUs and 1 GPU`."""
    amounts = [(cpus, "CPU"), *([(gpus, "GPU")] if gpus else [])]
    return " and ".join(f"{amount:g} {kind}{'' if amount == 1 else 's'}" for amount, kind in amounts)


def describe_room(nodes: Sequence[Mapping[str, float]]) -> str:
    """Return what machines have, in words."""
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    return f"{describe_share(cpus, gpus)} on {len(nodes)} machine{'' if len(nodes) == 1 else 's'}"


class RayWorker(Worker):
    """A worker as an actor; counts for Ray's metrics, which Prometheus reads from each machine."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(options)
        from ray.util import metrics

        self._images = metrics.Counter("mineral_batch_images", "Images predicted or failed.")
        self._failed = metrics.Counter("mineral_batch_failed_images", "Images without a prediction.")
        self._pieces = metrics.Counter("mineral_batch_pieces", "Pieces done.")
        self._left = metrics.Counter("mineral_batch_pieces_left", "Pieces left for another try.")
        self._seconds = metrics.Counter("mineral_batch_stage_seconds", "Seconds of each stage.", tag_keys=("stage",))

    def work(self, piece: Piece) -> PieceReport | Refusal:
        """Do one piece and count it."""
        report = super().work(piece)
        if isinstance(report, PieceReport):
            self._count(report)
        return report

    def node(self) -> str:
        """Return the identifier of this machine."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def _count(self, report: PieceReport) -> None:
        if report.left:
            self._left.inc()
            return
        self._pieces.inc()
        self._images.inc(report.images)
        for stage, seconds in report.stages.items():
            if seconds > 0:
                self._seconds.inc(seconds, {"stage": stage})
        if report.failed:
            self._failed.inc(report.failed)


class RayWorkforce:
    """Actors on a cluster; see `mineral_batch.cluster.crew.Workforce`.

    Args:
        ray: the module, connected.
        cluster: with `cpus` and `gpus` filled in.
        worker: options of the workers.
        actor: class of the actors.
    """

    def __init__(
        self, ray: Any, cluster: ClusterOptions, worker: WorkerOptions, actor: type[Worker] = RayWorker
    ) -> None:
        self._ray, self._worker = ray, worker
        # Threads: for each piece in hand, and for the call that stops.
        self._actor = ray.remote(actor).options(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_HAND + 1,
            scheduling_strategy="SPREAD",
        )
        self._worker_of: dict[Any, Any] = {}

    def start(self) -> Any:
        """Create an actor; it waits until the cluster has room, which is what an autoscaler looks at."""
        return self._actor.remote(self._worker)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of the actor."""
        return getattr(worker, method).remote(*arguments)

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Return the calls that are done."""
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        if not done:
            done, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
        return list(done)

    def result(self, call: Any) -> Any:
        """Return an answer."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(call)
        except errors.OutOfMemoryError as error:
            raise WorkerLostError(_first_line(error), is_memory=True) from None
        except errors.RayActorError as error:
            raise WorkerLostError(_cause(error), is_blameless=_is_blameless(error)) from None
        except errors.RayError as error:  # of Ray itself, or an answer that cannot be rebuilt here
            return Refusal(
                f"{_first_line(error)}; is the same mineral-batch installed on every machine?", is_machine=True
            )

    def end(self, worker: Any) -> None:
        """Kill the actor."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.kill(worker, no_restart=True)

    def room(self) -> str:
        """Return what the cluster has now."""
        return f"the cluster has {describe_room([node['Resources'] for node in self._ray.nodes() if node['Alive']])}"


def _is_blameless(error: Any) -> bool:
    """A machine that was taken away, or an actor that was killed through Ray."""
    text = str(error)
    return bool(getattr(error, "preempted", False)) or any(word in text for word in ("node has died", "ray.kill"))


def _cause(error: Exception) -> str:
    """The last line of what Ray says says why, in its first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].split(". ")[0] if lines else type(error).__name__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
