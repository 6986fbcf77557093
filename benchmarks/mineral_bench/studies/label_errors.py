"""Which score finds labels that are wrong: labels are changed at random, and each score orders the images.

    python -m mineral_bench.studies.label_errors PREDICTIONS LABELS [SPLIT]

What `mineral-batch audit` sorts by was chosen by this table. Confident learning is that of Northcutt, Jiang and Chuang
2021 (arXiv:1911.00068), for several labels per image.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
import numpy as np

from mineral_batch.evaluation.audit import suspicion
from mineral_batch.evaluation.evaluate import join

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Score = Callable[[Floats, Bools], Floats]

SEEDS = 20
SHARES = (0.05, 0.1)
_LOOK_ALIKES = 3
_TINY = 1e-6


def _log_losses(scores: Floats, truth: Bools) -> Floats:
    known = scores.clip(_TINY, 1 - _TINY)
    losses: Floats = -np.where(truth, np.log(known), np.log1p(-known))
    return losses


def _margin(scores: Floats, truth: Bools) -> Floats:
    given = np.where(truth, scores, 2.0).min(axis=1)
    margin: Floats = np.where(truth, -1.0, scores).max(axis=1) - given
    return margin


def _confident(scores: Floats, truth: Bools) -> Floats:
    """The margin with each given probability relative to its label's mean over the images that have it."""
    mean = (scores * truth).sum(axis=0) / np.maximum(truth.sum(axis=0), 1)
    given = np.where(truth, scores / np.maximum(mean, 1e-3), 9.0).min(axis=1)
    margin: Floats = np.where(truth, -1.0, scores).max(axis=1) - given
    return margin


CANDIDATES: dict[str, Score] = {
    "difference of log-odds (audit)": lambda scores, truth: suspicion(scores, truth).astype(np.float64),
    "log loss, sum over labels": lambda scores, truth: _log_losses(scores, truth).sum(axis=1),
    "log loss of the worst label": lambda scores, truth: _log_losses(scores, truth).max(axis=1),
    "difference of probabilities": _margin,
    "the same, by each label's mean": _confident,
}


def changed(
    scores: Floats, truth: Bools, share: float, generator: np.random.Generator, *, alike: bool
) -> tuple[Bools, Bools]:
    """Change a label of a share of the images.

    Args:
        scores: (N, L) probabilities.
        truth: (N, L), each image with at least one label.
        share: of the images.
        generator: of random numbers.
        alike: to one of the three labels whose probabilities correlate most, not to any.

    Returns:
        The labels (N, L) afterwards, and (N,) which images were changed.
    """
    correlation = np.atleast_2d(np.corrcoef(scores.T))
    after, is_changed = truth.copy(), np.zeros(len(truth), bool)
    for row in generator.choice(len(truth), round(share * len(truth)), replace=False):
        old = generator.choice(np.flatnonzero(truth[row]))
        others = np.flatnonzero(~truth[row])
        nearest = others[np.argsort(-correlation[old, others])][:_LOOK_ALIKES]
        after[row, old], after[row, generator.choice(nearest if alike else others)] = False, True
        is_changed[row] = True
    return after, is_changed


def found(score: Floats, is_changed: Bools) -> tuple[float, float]:
    """Share of the k first that were changed, and share of the k changed ones among the 2k first."""
    order, count = np.argsort(-score, kind="stable"), int(is_changed.sum())
    return float(is_changed[order[:count]].mean()), float(is_changed[order[: 2 * count]].sum() / count)


def main(predictions: str, labels: str, split: str | None = None) -> None:
    """Print the table."""
    joined = join(predictions, labels, split)
    has_label = joined.truth.any(axis=1)
    scores, truth = joined.predictions.scores[has_label], joined.truth[has_label]
    click.echo(f"{len(truth)} images with a label, {SEEDS} seeds; found among the k first, and of k among the 2k first")
    for share in SHARES:
        for alike in (False, True):
            generators = [np.random.default_rng(seed) for seed in range(SEEDS)]
            cases = [changed(scores, truth, share, generator, alike=alike) for generator in generators]
            click.echo(f"{share:.0%} changed to {'a look-alike' if alike else 'any label'}")
            for name, score in CANDIDATES.items():
                mean = np.array([found(score(scores, after), which) for after, which in cases]).mean(axis=0)
                click.echo(f"  {name:<32} {mean[0]:.2f} {mean[1]:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
