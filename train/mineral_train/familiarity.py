"""Fit the familiarity of images (`mineral_batch.model.familiarity`) to the features of a model's training images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.model.familiarity import QUANTILES, FamiliarityScore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = "Mahalanobis distance of the pooled features by probabilistic principal components, as a percentile of "
COMPONENTS = 64
_FOLDS = 5


def percentiles(held: int) -> str:
    """Whose percentiles a score has, to complete `METHOD`: of so many images held out, or of the training images."""
    return f"{held} images that trained nothing" if held else "training images outside the fold it was fitted on"


def fit_familiarity(
    features: NDArray[np.floating],
    *,
    held: NDArray[np.floating] | None = None,
    components: int = COMPONENTS,
    seed: int = 0,
) -> FamiliarityScore:
    """Fit the score.

    Args:
        features: (N, D) of training images.
        held: (M, D) of images that the model was not trained on, whose quantiles to take: a fine-tuned model finds its
            training images more familiar than new ones. None takes the training images' own, each scored by components
            that were fitted on the other folds, because fitted scores are too low.
        components: K, fewer where there are fewer images or channels.
        seed: of the assignment to folds.

    Raises:
        DataError: for fewer than 20 images, or features that are not finite.
    """
    x = np.asarray(features, np.float64)
    if len(x) < 20 or not np.isfinite(x).all():
        raise DataError(f"familiarity needs the features of 20 or more images, all of them finite; got {len(x)}")
    components = min(components, len(x) // 4, x.shape[1] // 2)
    if held is None:
        fold = np.random.default_rng(seed).permutation(np.arange(len(x)) % _FOLDS)
        out = [_fit(x[fold != f], components).strangeness(x[fold == f]) for f in range(_FOLDS)]
        scores = np.concatenate(out)
    else:
        scores = _fit(x, components).strangeness(held)
    return _fit(x, components, _increasing(np.quantile(scores, np.linspace(0, 1, QUANTILES))))


def _fit(x: Floats, components: int, quantiles: Floats | None = None) -> FamiliarityScore:
    mean, sd = x.mean(axis=0), x.std(axis=0)
    alive = sd > 1e-9  # a channel that never varies says nothing
    inverse_sd = np.where(alive, 1 / np.where(alive, sd, 1.0), 0.0)
    variances, vectors = np.linalg.eigh(np.cov(((x - mean) * inverse_sd).T, bias=True))
    order = np.argsort(variances)[::-1]
    kept, rest = order[:components], order[components:]
    channels = max(1, int(alive.sum()) - components)
    inverse_rest = channels / max(float(variances[rest].sum()), 1e-9)
    weights = 1 / np.maximum(variances[kept], 1e-9) - inverse_rest
    steps = np.linspace(0, 1, QUANTILES) if quantiles is None else quantiles
    return FamiliarityScore(mean, inverse_sd, vectors[:, kept].T, weights, inverse_rest, steps)


def _increasing(quantiles: Floats) -> Floats:
    """Strictly increasing, in float32 too."""
    least = 1e-5 * max(1.0, float(np.abs(quantiles).max()))
    increasing: Floats = np.maximum.accumulate(quantiles + np.arange(len(quantiles)) * least)
    return increasing
