"""Throughput of ways to run a model by batch, the images already on the device."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu.record import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings, Sizes

    #: (settings, batch) -> what computes a batch while the block lasts.
    Runner = Callable[[Settings, int], AbstractContextManager["Workload"]]


@dataclass(frozen=True)
class Workload:
    """A model ready to compute one batch.

    Attributes:
        run: computes, or starts to.
        images: of one run; 0 for one batch.
        notes: what is known of it, in words.
    """

    run: Callable[[], Any]
    images: int = 0
    notes: str = ""


def has_events(sizes: Sizes) -> bool:
    """Whether CUDA events can be used; without them the host's clock is."""
    if sizes.dry:
        return False
    with suppress(ImportError, OSError):
        import torch

        return torch.cuda.is_available()
    return False


def seconds_per_call(work: Callable[[], Any], sizes: Sizes) -> float:
    """Measure one call: median of five stretches, after a warm-up as long as one of them."""
    stretch = _stretch_on_gpu if has_events(sizes) else _stretch_on_host
    for _ in range(3):
        work()
    once = max(stretch(work, 1), 1e-6)
    rounds = max(1, int(sizes.seconds / 5 / once))
    return sorted([stretch(work, rounds) / rounds for _ in range(6)][1:])[2]


def _stretch_on_gpu(work: Callable[[], Any], rounds: int) -> float:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(rounds):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _stretch_on_host(work: Callable[[], Any], rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    return time.perf_counter() - start


def by_batch(
    settings: Settings, record: Record, runners: Mapping[str, Runner], batches: tuple[int, ...] | None = None
) -> None:
    """Measure images a second of each runner by batch; goes on where an earlier attempt stopped.

    After a batch that fails the larger ones are left out, after two failures all are.
    """
    failed: dict[str, list[int]] = {name: [] for name in runners}
    for name in runners:
        record.values.pop(f"{name} ended", None)
    for batch in batches or settings.sizes.batches:
        for name, runner in runners.items():
            is_known = str(batch) in record.values.get(name, {})
            if is_known or len(failed[name]) > 1 or any(batch > other for other in failed[name]):
                continue
            try:
                _add_rate(settings, record, name, runner, batch)
            except Exception as error:  # a larger batch may not fit; the others are still measured
                failed[name].append(batch)
                record.count_failure(f"{name}, batch {batch}", error)
                ended = [record.values.get(f"{name} ended"), f"batch {batch}: {first_line(error)}"]
                record.save(**{f"{name} ended": "; ".join(filter(None, ended))})


def _add_rate(settings: Settings, record: Record, name: str, runner: Runner, batch: int) -> None:
    with runner(settings, batch) as workload:
        rate = (workload.images or batch) / seconds_per_call(workload.run, settings.sizes)
        record.save(**{name: {**record.values.get(name, {}), str(batch): rate}})
        if workload.notes:
            record.save(**{f"{name} says": {**record.values.get(f"{name} says", {}), str(batch): workload.notes}})
