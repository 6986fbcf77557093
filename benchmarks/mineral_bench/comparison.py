"""Ways to answer for the same pictures, each in a process of its own: how fast, and whether they answer the same."""

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
    """What was measured.

    Attributes:
        rounds: of every way that works here; the reference comes first.
        pictures: in a round.
        differences: way -> largest absolute difference of a probability from the reference's.
        memory: way -> peak MiB of its process, without that one's own children.
        absent: way -> why it does not work here.
    """

    rounds: Rounds
    pictures: int
    differences: Mapping[str, float]
    memory: Mapping[str, float | None]
    absent: Mapping[str, str] = field(default_factory=dict)


def compare(
    ways: Mapping[str, Isolated], first: Mapping[str, Probabilities], method: str, pictures: int, plan: Plan
) -> Comparison:
    """Time a method of all ways in interleaved rounds.

    Args:
        ways: name -> an object in its process, which also has a method `rest` that does nothing; the reference first.
        first: name -> (N, L) what it answered before, to be compared.
        method: to time.
        pictures: that it answers.
        plan: how long.
    """
    rounds = interleave({name: partial(way.work, method) for name, way in ways.items()}, plan)
    memory = {name: way.call("rest").peak_memory_mib for name, way in ways.items()}
    reference = next(iter(first.values()))
    differences = {name: float(np.abs(answer - reference).max()) for name, answer in first.items()}
    return Comparison(rounds, pictures, differences, memory)


def table(found: Comparison, title: str, references: Sequence[str] = ()) -> Table:
    """One row per way, with its ratio to the first one and, where they were measured, to other references."""
    times, cpu = found.rounds.seconds, found.rounds.cpu
    references = [name for name in dict.fromkeys((next(iter(times)), *references)) if name in times]
    rows = [
        (
            name,
            str(median(times[name]).per(found.pictures)),
            *(str(ratio(times[name], times[one])) if name != one else "1" for one in references),
            1000 * float(np.median(cpu[name])) / found.pictures,
            *(str(ratio(cpu[name], cpu[one])) if name != one else "1" for one in references),
            f"{found.differences[name]:.1g}",
            found.memory[name],
        )
        for name in times
    ]
    columns = [
        "",
        "pictures a second",
        *(f"times {one}" for one in references),
        "CPU ms a picture",
        *(f"CPU, times {one}" for one in references),
        "largest difference",
        "peak MiB",
    ]
    notes = [
        f"Medians with 95 % intervals; {found.rounds}, {found.pictures} pictures each. Largest difference of a "
        f"probability from {references[0]}.",
        *(f"Not here: {name}: {why}." for name, why in found.absent.items()),
    ]
    return Table(title, columns, rows, notes)


def figures(found: Comparison) -> dict[str, Any]:
    """For JSON; null for a difference that is not a number."""
    return {
        "pictures": found.pictures,
        "rounds": str(found.rounds),
        "seconds": dict(found.rounds.seconds),
        "cpu_seconds": dict(found.rounds.cpu),
        "largest_difference": {name: one if np.isfinite(one) else None for name, one in found.differences.items()},
        "peak_memory_mib": dict(found.memory),
        "absent": dict(found.absent),
    }
