"""How the probability of "any of these labels" is best taken, at the levels of species, group and class.

    python -m mineral_bench.studies.broader_names PREDICTIONS LABELS [SPLIT]

What `mineral_batch.minerals.levels.union_probability` does was chosen by this table.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import numpy as np

from mineral_batch.evaluation.evaluate import join
from mineral_batch.minerals.levels import SURE, union_probability
from mineral_batch.minerals.table import LEVELS, names_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

CANDIDATES: dict[str, Callable[[Floats], Floats]] = {
    "sum, at most 1": lambda values: np.minimum(values.sum(axis=1), 1.0),
    "1 - prod(1 - p)": union_probability,
    "largest": lambda values: values.max(axis=1),
}


def log_loss(probabilities: Floats, truth: Bools) -> float:
    """Mean over all elements."""
    known = probabilities.clip(1e-7, 1 - 1e-7)
    return float(-np.where(truth, np.log(known), np.log1p(-known)).mean())


def main(predictions: str, labels: str, split: str | None = None) -> None:
    """Print the table."""
    joined = join(predictions, labels, split)
    names = joined.predictions.labels
    click.echo(f"{len(joined.truth)} images; log loss, and unions of {SURE} or more: how many, how often right")
    for level in LEVELS[1:]:
        unions = [
            [names.index(name) for name in several] for several in names_at(names, level).values() if len(several) > 1
        ]
        truth = np.stack([joined.truth[:, columns].any(axis=1) for columns in unions], axis=1)
        click.echo(f"{level} ({len(unions)} names)")
        for name, rule in CANDIDATES.items():
            values = np.stack([rule(joined.predictions.scores[:, columns]) for columns in unions], axis=1)
            sure = values >= SURE
            right = f"{sure.sum():>4} {truth[sure].mean():.0%}" if sure.any() else "none"
            click.echo(f"  {name:<16} {log_loss(values, truth):.4f} {right}")


if __name__ == "__main__":
    main(*sys.argv[1:])
