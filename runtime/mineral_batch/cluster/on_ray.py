"""Ray carries the calls of a cluster run: one actor for each worker.

Ray Core, not Ray Data. Ray Data would need pandas and read tasks beside the actors, which starve when the actors hold
the last CPU (ray-project/ray#44687); it hangs when actors die with `max_errored_blocks=-1` (#62746) and retries
blindly. Here `mineral_batch.cluster.crew` sees each death and decides: Ray itself retries neither actors nor calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mineral_batch.cluster.connection import Connection
from mineral_batch.cluster.crew import WorkerLostError
from mineral_batch.cluster.plan import Piece
from mineral_batch.cluster.sizes import ClusterOptions, describe_room, describe_share
from mineral_batch.cluster.work import PieceReport
from mineral_batch.cluster.worker import IN_HAND, Refusal, Worker, WorkerOptions
from mineral_batch.errors import BackendError

# What Ray adds to the reason why an actor died before it began.
_NEVER_RAN = "The actor never ran"
# What Ray's messages say of the machine that a call ran on, and of one whose memory was used up.
_ADDRESS = re.compile(r"\bip=([^,)\s]+)")
_NODE = re.compile(r"\bIP: ([^,)\s]+)")
_USED = re.compile(r"([\d.]+)GB(?: used)? / ([\d.]+)GB")


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
        connection: to the cluster.
        cluster: with `cpus` and `gpus` filled in.
        worker: options of the workers.
        actor: class of the actors.
    """

    def __init__(
        self,
        connection: Connection,
        cluster: ClusterOptions,
        worker: WorkerOptions,
        actor: type[Worker] = RayWorker,
    ) -> None:
        self._ray, self._head, self._cluster, self._worker = connection.ray, connection.head, cluster, worker
        # Threads: for each piece in hand, and for the call that stops.
        self._actor = self._ray.remote(actor).options(
            num_cpus=cluster.cpus,
            num_gpus=cluster.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=IN_HAND + 1,
            scheduling_strategy="SPREAD",
        )

    def start(self) -> Any:
        """Create an actor; it waits until the cluster has room, which is what an autoscaler looks at."""
        with self._asking():
            return self._actor.remote(self._worker)

    def call(self, worker: Any, method: str, *arguments: Any) -> Any:
        """Call a method of the actor."""
        with self._asking():
            return getattr(worker, method).remote(*arguments)

    def wait(self, calls: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Return the calls that are done."""
        with self._asking():
            done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
            if not done:
                done, _ = self._ray.wait(list(calls), num_returns=1, timeout=seconds)
            return list(done)

    def result(self, call: Any) -> Any:
        """Return an answer."""
        errors = self._ray.exceptions
        try:
            with self._asking():
                return self._ray.get(call)
        except errors.OutOfMemoryError as error:
            raise WorkerLostError(_memory(error), is_memory=True) from None
        except errors.RayActorError as error:
            if error.actor_init_failed:
                return _cannot_load(error)
            raise WorkerLostError(_cause(error), is_blameless=_is_blameless(error)) from None
        except errors.RayError as error:  # of Ray itself, or of an answer that cannot be rebuilt here
            return _cannot_load(error)

    def end(self, worker: Any) -> None:
        """Kill the actor."""
        if not self._head.is_lost:
            with suppress(self._ray.exceptions.RayError, BackendError), self._asking():
                self._ray.kill(worker, no_restart=True)

    def room(self) -> str:
        """Return what a worker needs and what the cluster has now."""
        if not self._head.answers():
            return "the head of the cluster does not answer"
        with self._asking():
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            free = self._ray.available_resources()
        share = describe_share(self._cluster.cpus or 0, self._cluster.gpus or 0)
        kinds = [kind for kind in ("CPU", "GPU") if kind == "CPU" or kind in free]
        left = " and ".join(f"{free.get(kind, 0):g} {kind}s" for kind in kinds)
        return f"each needs {share}; the cluster has {describe_room(nodes)}, {left} free"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Say in our words that the head is gone; the Ray Client itself notices it."""
        self._head.check()
        try:
            yield
        except ConnectionError:
            raise self._head.give_up() from None


def _is_blameless(error: Any) -> bool:
    """A machine that was taken away, or an actor that was killed through Ray, which tells it by words alone."""
    text = str(error)
    return bool(error.preempted) or any(words in text for words in ("node has died", "ray.kill"))


def _cannot_load(error: Exception) -> Refusal:
    where = _ADDRESS.search(str(error))
    return Refusal(
        f"{where[1] if where else 'a machine of the cluster'} cannot run a worker ({_cause(error)}): install the same "
        f"release of mineral-batch, with its extras, on every machine",
        is_machine=True,
    )


def _memory(error: Exception) -> str:
    """`10.0.0.5 is short of memory (15.4 of 16.0 GB used), so Ray ended a worker`."""
    where, used = _NODE.search(str(error)), _USED.search(str(error))
    return (
        f"{where[1] if where else 'a machine of the cluster'} is short of memory"
        f"{f' ({used[1]} of {used[2]} GB used)' if used else ''}, so Ray ended a worker"
    )


def _cause(error: Exception) -> str:
    """The last line of what Ray says tells why, in its first sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith(_NEVER_RAN):
        lines.pop()
    return lines[-1].split(". ")[0] if lines else type(error).__name__
