"""Thresholds: from probabilities to decisions, and how to choose them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from mineral_batch.evaluation.metrics import checked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools, Floats

#: Labels with fewer positives than this share one threshold: the best cut of four pictures is chance.
MIN_SUPPORT: Final = 5


def binarize(scores: Floats, thresholds: Floats | float) -> Bools:
    """Decisions (N, L) bool: a label is called present at or above its threshold (L,)."""
    return np.asarray(scores) >= np.asarray(thresholds)


def tune_thresholds(
    scores: Floats,
    truth: Bools,
    beta: float = 1.0,
    *,
    fallback: Floats | float = 0.5,
    min_support: int = MIN_SUPPORT,
) -> NDArray[np.float64]:
    """Per label the threshold that maximises F_beta on these pictures.

    F_beta = (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP) (van Rijsbergen 1979). The threshold lies midway
    between the lowest score called present and the next one below (0 below the last); of several best cuts the one
    that calls the fewest pictures. Figures for the pictures that were tuned on are optimistic: tune on validation.

    Args:
        scores: (N, L) probabilities, 0..1.
        truth: (N, L) bool.
        beta: weight of recall against precision, above 0.
        fallback: (L,) or one number, for rare labels that even together have fewer than `min_support` positives.
        min_support: positives that a label needs for a threshold of its own. The rarer ones share the cut that is
            best for all of them together.

    Returns:
        (L,) thresholds, for `binarize`.
    """
    scores, truth = checked(scores, truth, ndim=2)
    thresholds = np.array(np.broadcast_to(fallback, scores.shape[1]), np.float64)
    common = truth.sum(axis=0) >= max(1, min_support)
    for label in np.flatnonzero(common):
        thresholds[label] = _best_threshold(scores[:, label].astype(np.float64), truth[:, label], beta)
    rare = truth[:, ~common]
    if rare.sum() >= max(1, min_support):
        thresholds[~common] = _best_threshold(scores[:, ~common].astype(np.float64).ravel(), rare.ravel(), beta)
    return thresholds


def _best_threshold(scores: NDArray[np.float64], truth: Bools, beta: float) -> float:
    """The cut of one label, which has positives, with the highest F_beta."""
    order = np.argsort(-scores, kind="stable")
    ranked, below = scores[order], np.append(scores[order][1:], 0.0)
    called = np.arange(1, len(scores) + 1)
    f_beta = (1 + beta**2) * truth[order].cumsum() / (beta**2 * truth.sum() + called)
    is_cut = np.append(ranked[:-1] > ranked[1:], True)
    best = int(np.argmax(np.where(is_cut, f_beta, -1.0)))
    middle = (ranked[best] + below[best]) / 2
    # Between two neighbouring floats there is no middle: it rounds to one of them.
    return float(middle if middle > below[best] else ranked[best])
