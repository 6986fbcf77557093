"""How many workers a Ray cluster has room for, and what each of them gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

from mineral_batch.cluster.connection import LOCAL
from mineral_batch.errors import BackendError
from mineral_batch.words import counted

# By default a worker has no more: decoding threads and engine threads of one process get into each other's way.
_CPUS_OF_A_WORKER = 8


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
    return f"{describe_share(cpus, gpus)} on {counted(len(nodes), 'machine')}"
