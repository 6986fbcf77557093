"""What the chip can do at most."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import ceilings, machine, packages
from mineral_bench.gpu.native_backend import native_backend

if TYPE_CHECKING:
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def chip(settings: Settings, record: Record) -> None:
    """Measure matrix products and copies, check the native backend without an engine, list what is installed."""
    record.save(machine=machine.described() | _by_torch(settings), packages=packages.versions())
    ceilings.matrix_products(settings.sizes, record)
    ceilings.copies(settings.sizes, record)
    native_backend(settings.sizes, record, through="cuda-core")


def _by_torch(settings: Settings) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = dict(settings.where)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"compute_capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        with suppress(Exception):
            from mineral_batch.cuda.probe import cuda_version

            found["driver_runs_cuda"] = cuda_version()
    return found
