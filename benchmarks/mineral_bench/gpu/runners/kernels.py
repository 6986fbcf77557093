"""Which kernels a session spends the GPU's time on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mineral_bench.gpu.runners.onnx_runtime import onnx_runtime

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.gpu.settings import Settings

# Of a kernel's name, most of which is its template arguments.
_LONGEST = 120


def kernels(settings: Settings, batch: int, model: Path, most: int = 12) -> dict[str, str]:
    """Return the share of the GPU's time by kernel, the longest first, in the session of `predict`."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with onnx_runtime(settings, batch, model) as workload:
        for _ in range(3):
            workload.run()
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(3):
                workload.run()
            torch.cuda.synchronize()
    return shares({event.key: event.self_device_time_total for event in profiled.key_averages()}, most)


def shares(spent: dict[str, float], most: int) -> dict[str, str]:
    """Return shares of the whole, the largest first, and one for what is beyond `most`; long common prefixes merge."""
    alike: Counter[str] = Counter()
    for name, time_spent in spent.items():
        alike[name[:_LONGEST]] += time_spent  # type: ignore[assignment]  # of floats, too
    order, total = [name for name, time_spent in alike.most_common() if time_spent], sum(spent.values())
    found = {name: f"{alike[name] / total:.1%}" for name in order[:most]}
    rest = sum(alike[name] for name in order[most:])
    return {**found, f"{len(order) - most} others": f"{rest / total:.1%}"} if rest else found
