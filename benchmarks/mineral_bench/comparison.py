"""Time several ways to predict the same images, each in a process of its own, and compare their output."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_bench.measure import Plan, Rounds, interleave, median, ratio
from mineral_bench.report import Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.types import Probabilities
    from mineral_bench.process.isolated import Isolated


@dataclass(frozen=True)
class Comparison:
    """The result.

    Attributes:
        rounds: of every way that works here; the reference comes first.
        images: in a round.
        differences: way -> largest absolute difference of a probability from the reference's.
        memory: way -> peak MiB of its process, without child processes.
        absent: way -> why it does not work here.
    """

    rounds: Rounds
    images: int
    differences: Mapping[str, float]
    memory: Mapping[str, float | None]
    absent: Mapping[str, str] = field(default_factory=dict)


def compare(
    ways: Mapping[str, Isolated], first: Mapping[str, Probabilities], method: str, images: int, plan: Plan
) -> Comparison:
    """Time a method of all ways in interleaved rounds.

    Args:
        ways: name -> an object in its process, which also has a method `rest` that does nothing; the reference first.
        first: name -> (N, L), a prediction of each, to be compared.
        method: to time.
        images: that it predicts.
        plan: how long.
    """
    rounds = interleave({name: partial(way.work, method) for name, way in ways.items()}, plan)
    memory = {name: way.call("rest").peak_memory_mib for name, way in ways.items()}
    reference = next(iter(first.values()))
    differences = {name: float(np.abs(prediction - reference).max()) for name, prediction in first.items()}
    return Comparison(rounds, images, differences, memory)


def table(result: Comparison, title: str, references: Sequence[str] = ()) -> Table:
    """Return one row per way, with its ratio to the first one and to other references."""
    times, cpu = result.rounds.seconds, result.rounds.cpu
    references = [name for name in dict.fromkeys((next(iter(times)), *references)) if name in times]
    rows = [
        (
            name,
            str(median(times[name]).per(result.images)),
            *(str(ratio(times[name], times[one])) if name != one else "1" for one in references),
            1000 * float(np.median(cpu[name])) / result.images,
            *(str(ratio(cpu[name], cpu[one])) if name != one else "1" for one in references),
            f"{result.differences[name]:.1g}",
            result.memory[name],
        )
        for name in times
    ]
    columns = [
        "",
        "images a second",
        *(f"times {one}" for one in references),
        "CPU ms an image",
        *(f"CPU, times {one}" for one in references),
        "largest difference",
        "peak MiB",
    ]
    notes = [
        f"Medians with 95% intervals; {result.rounds}, {result.images} images each. Largest difference of a "
        f"probability from {references[0]}.",
        *(f"Not here: {name}: {why}." for name, why in result.absent.items()),
    ]
    return Table(title, columns, rows, notes)


def figures(result: Comparison) -> dict[str, Any]:
    """Return the figures for JSON; null for a difference that is not a number."""
    return {
        "pictures": result.images,
        "rounds": str(result.rounds),
        "seconds": dict(result.rounds.seconds),
        "cpu_seconds": dict(result.rounds.cpu),
        "largest_difference": {name: one if np.isfinite(one) else None for name, one in result.differences.items()},
        "peak_memory_mib": dict(result.memory),
        "absent": dict(result.absent),
    }
