"""Machines, hours and money for a number of photographs, from what one image costs.

A machine's rate is the least of what its GPUs compute and what its CPUs decode; on a machine without a GPU the CPUs do
both. The figures of one image come from `mineral-bench scaling` and `mineral-bench feed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from mineral_bench.report import Table

_MILLION = 1_000_000


@dataclass(frozen=True)
class Machine:
    """What is rented.

    Attributes:
        name: of its kind.
        gpus: in it.
        gpu_rate: images a second of one of them.
        vcpus: in it; a vCPU is a hardware thread, half a core.
        price: dollars an hour.
    """

    name: str
    gpus: int
    gpu_rate: float
    vcpus: int
    price: float


@dataclass(frozen=True)
class ImageCost:
    """What one image costs.

    Attributes:
        core_ms: milliseconds of a core to read, decode and hand over an image, and to write its row.
        engine_core_ms: milliseconds of a core to predict it where there is no GPU.
        vcpu_share: work of a vCPU, as a share of a core's that is alone on its core.
        efficiency: share of the rate that a cluster keeps.
        request_price: dollars for 1,000 objects read.
    """

    core_ms: float
    engine_core_ms: float
    vcpu_share: float
    efficiency: float
    request_price: float

    @property
    def fed_by_vcpu(self) -> float:
        """Images a second that a vCPU can hand to a GPU."""
        return self.vcpu_share * 1000 / self.core_ms

    def rate(self, machine: Machine) -> tuple[float, str]:
        """Return a machine's images a second, and what limits it."""
        if not machine.gpus:
            both = self.core_ms + self.engine_core_ms
            return self.efficiency * machine.vcpus * self.vcpu_share * 1000 / both, "CPUs, which also compute"
        by_cpus, by_gpus = machine.vcpus * self.fed_by_vcpu, machine.gpus * machine.gpu_rate
        return self.efficiency * min(by_cpus, by_gpus), "GPUs" if by_gpus <= by_cpus else "CPUs, which decode"


def by_machine(machines: Sequence[Machine], cost: ImageCost, notes: Sequence[str] = ()) -> Table:
    """Return one row per machine: rates in the terms that others publish, and dollars for a million images.

    Args:
        machines: to compare.
        cost: of an image.
        notes: lines below the table, such as where the prices are from.
    """
    rows = []
    for machine in machines:
        rate, limit = cost.rate(machine)
        dollars = machine.price * _MILLION / rate / 3600 + cost.request_price * _MILLION / 1000
        per_gpu = rate / machine.gpus if machine.gpus else "-"
        fed = cost.fed_by_vcpu if machine.gpus else "-"
        rows.append((machine.name, machine.price, rate, per_gpu, rate / machine.vcpus, fed, limit, dollars))
    columns = ("machine", "$ an hour", "images/s", "per GPU", "per vCPU", "a vCPU can feed", "limit", "$ for a million")
    return Table("Machines", columns, rows, [_assumptions(cost), *notes])


def by_task(photographs: Sequence[int], machines: Sequence[Machine], cost: ImageCost, hours: float) -> Table:
    """Return one row per task and machine: hours on one, how many finish it in some hours, and dollars."""
    rows = []
    for count in photographs:
        for machine in machines:
            alone = count / cost.rate(machine)[0] / 3600
            needed = ceil(alone / hours)
            dollars = alone * machine.price + cost.request_price * count / 1000
            rows.append((f"{count:,}", machine.name, alone, needed, alone / needed, dollars))
    columns = ("photographs", "machine", "hours on one", f"machines for {hours:g} h", "hours on these", "$")
    note = "Dollars hardly depend on the number of machines: it is the same work. Starting machines is not in it."
    return Table("Tasks", columns, rows, [note])


def _assumptions(cost: ImageCost) -> str:
    return (
        f"{cost.core_ms:g} core-milliseconds an image, "
        f"{cost.engine_core_ms:g} core-milliseconds to predict one where there is no GPU; a vCPU does "
        f"{cost.vcpu_share:g} of a core; a cluster keeps {cost.efficiency:.0%}; "
        f"${cost.request_price:g} for 1,000 objects read."
    )
