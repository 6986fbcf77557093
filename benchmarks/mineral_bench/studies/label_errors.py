"""Which score finds labels that are wrong: labels are changed at random, and each score orders the images.

    python -m mineral_bench.studies.label_errors scores PREDICTIONS LABELS [SPLIT]
    python -m mineral_bench.studies.label_errors features RESULTS LABELS [SPLIT] [MODEL]

`scores` compares orders by the answers alone; what `mineral-batch audit` sorts by was chosen by this table. `features`
swaps labels between images of look-alikes, and compares the order by answers with those by features of the images (the
input of the model's last layer) and by both. RESULTS is a folder of predict, where the features are kept.

Confident learning is that of Northcutt, Jiang and Chuang 2021 (arXiv:1911.00068), for several labels per image.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from mineral_batch.evaluation.audit import LIKELY, PROBABLE, look_wrong, suspicion
from mineral_batch.evaluation.evaluate import join
from mineral_batch.model.starter import starter_path
from mineral_batch.results.schema import PREDICTIONS
from mineral_batch.review.alike import compute
from mineral_batch.review.features import FeatureExtractor, FeatureStore
from mineral_batch.review.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mineral_batch.evaluation.evaluate import Joined

    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

    Score = Callable[[Floats, Bools], Floats]
    FeatureScore = Callable[[Floats, Floats, Bools], Floats]

SEEDS = 20
SHARES = (0.05, 0.1)
#: As many as a curator may look at.
FIRST = (20, 50, 100)
_SWAPPED = 0.1
_NEIGHBORS = 10
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


def planted(scores: Floats, after: Bools, is_changed: Bools) -> tuple[int, int, int, int]:
    """Count what `audit` says looks wrong, and what has the same odds but an improbable suggestion.

    Returns:
        How many look wrong and how many of these were changed; the same of the less certain ones.
    """
    is_listed = look_wrong(scores, after)
    is_doubtful = (suspicion(scores, after) >= np.log(LIKELY)) & ~is_listed
    counts = [(int(which.sum()), int((which & is_changed).sum())) for which in (is_listed, is_doubtful)]
    return *counts[0], *counts[1]


def nearest_votes(features: Floats, truth: Bools, count: int = _NEIGHBORS) -> Floats:
    """The share of the nearest images that have each label: (N, D) and (N, L) to (N, L).

    By cosine, without the image itself; one vote more is shared out by how frequent the labels are.
    """
    centered = features - features.mean(axis=0)
    unit = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :count]
    votes: Floats = (truth[nearest].sum(axis=1) + truth.mean(axis=0)) / (nearest.shape[1] + 1)
    return votes


def by_answers_and_features(weight: float) -> FeatureScore:
    """The score of audit, plus that of the votes of the nearest images with a weight."""
    return lambda scores, features, truth: (
        suspicion(scores, truth) + weight * suspicion(nearest_votes(features, truth), truth)
    ).astype(np.float64)


WITH_FEATURES: dict[str, FeatureScore] = {
    "by answers (audit)": by_answers_and_features(0.0),
    "by features: 10 nearest": lambda _, features, truth: suspicion(nearest_votes(features, truth), truth).astype(
        np.float64
    ),
    "both, features count a quarter": by_answers_and_features(0.25),
    "both, features count a half": by_answers_and_features(0.5),
    "both alike": by_answers_and_features(1.0),
}


def swapped(scores: Floats, truth: Bools, share: float, generator: np.random.Generator) -> tuple[Bools, Bools]:
    """Swap a label between pairs of images, each of one of the three labels whose probabilities correlate most.

    Arguments and result are those of `changed`; how frequent each label is stays the same.
    """
    correlation = np.nan_to_num(np.atleast_2d(np.corrcoef(scores.T)))
    after, is_changed = truth.copy(), np.zeros(len(truth), bool)
    for row in generator.permutation(len(truth)).tolist():
        if is_changed.sum() >= round(share * len(truth)):
            break
        own = int(generator.choice(np.flatnonzero(truth[row])))
        nearest = [label for label in np.argsort(-correlation[own]).tolist() if label != own][:_LOOK_ALIKES]
        pairs = [
            (other, label)
            for label in nearest
            for other in np.flatnonzero(truth[:, label] & ~truth[:, own] & ~is_changed).tolist()
            if not truth[row, label]
        ]
        if is_changed[row] or not pairs:
            continue
        other, label = pairs[int(generator.integers(len(pairs)))]
        after[row, own], after[row, label] = False, True
        after[other, label], after[other, own] = False, True
        is_changed[row] = is_changed[other] = True
    return after, is_changed


def first(score: Floats, is_changed: Bools) -> list[int]:
    """How many of the changed images are among the first 20, 50 and 100."""
    order = np.argsort(-score, kind="stable")
    return [int(is_changed[order[:count]].sum()) for count in FIRST]


def compare_features(results: str, labels: str, split: str | None = None, model: str | None = None) -> None:
    """Print the tables with and without features."""
    folder = Path(results)
    everything = join(folder / PREDICTIONS, labels, split)
    has_label = np.flatnonzero(everything.truth.any(axis=1)).tolist()
    table = everything.predictions.select(has_label)
    joined = replace(everything, predictions=table, truth=everything.truth[has_label])
    store = FeatureStore(folder, FeatureExtractor(Path(model) if model else starter_path()))
    try:
        compute(table.paths, store, Reader(Path()), lambda _: None)
        places, vectors = store.vectors(table.paths)
        readable = replace(joined, predictions=table.select(places.tolist()), truth=joined.truth[places])
        _print_orders(readable, vectors.astype(np.float64))
    finally:
        store.close()


def _print_orders(joined: Joined, features: Floats) -> None:
    scores, truth = joined.predictions.scores, joined.truth
    cases = [swapped(scores, truth, _SWAPPED, np.random.default_rng(seed)) for seed in range(SEEDS)]
    count = np.mean([which.sum() for _, which in cases])
    click.echo(f"{len(truth)} images with a label, {count:.1f} of them swapped; found among the first {FIRST}:")
    click.echo(f"  {'':<32} {'mean and deviation of ' + str(SEEDS) + ' seeds':<36} the first three seeds")
    for name, score in WITH_FEATURES.items():
        found = np.array([first(score(scores, features, after), which) for after, which in cases])
        mean = "  ".join(f"{one:.1f} ± {sd:.1f}" for one, sd in zip(found.mean(axis=0), found.std(axis=0), strict=True))
        few = "  ".join(f"{one:.1f}" for one in found[:3].mean(axis=0))
        click.echo(f"  {name:<32} {mean:<36} {few}")


def main(predictions: str, labels: str, split: str | None = None) -> None:
    """Print the table of `scores`."""
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
            counts = np.mean([planted(scores, after, is_changed) for after, is_changed in cases], axis=0)
            click.echo(
                f"  odds of {LIKELY:g} or more, changed of all: {counts[1]:.1f} of {counts[0]:.1f} where the "
                f"suggestion is at least {PROBABLE:.0%} probable, {counts[3]:.1f} of {counts[2]:.1f} where it is less"
            )


if __name__ == "__main__":
    task, *rest = sys.argv[1:]
    if task == "features":
        compare_features(*rest)
    else:
        main(*rest)
