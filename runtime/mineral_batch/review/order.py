"""The order in which images come up for review."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.evaluation.audit import suspicion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools, Floats

#: Name -> what it is for, as the page shows it.
ORDERS = {
    "teaches": "What teaches the model most",
    "mistakes": "Likely mistakes in the existing labels",
    "mineral": "One mineral, most probable first",
    "file": "By file",
}
# Images that are spread over different answers; behind them the order is by uncertainty alone.
_DIVERSE = 500
_TINY = 1e-7


def teaches(scores: Floats, limit: int = _DIVERSE) -> NDArray[np.intp]:
    """Order images by uncertainty and diversity: each next one is uncertain and unlike those before it.

    Uncertainty is the binary entropy of the label nearest to 50 %; unlikeness is the distance to the nearest image
    chosen so far, between the square roots of the probabilities (Hellinger). The product is maximised greedily.

    Args:
        scores: (N, L) probabilities.
        limit: how many are chosen so; the rest follows by uncertainty.

    Returns:
        (N,) indices.
    """
    uncertainty = _entropy(scores).max(axis=1)
    roots = np.sqrt(scores).astype(np.float32)
    distance = np.full(len(scores), np.inf, np.float32)
    chosen: list[int] = []
    value = uncertainty.copy()
    for _ in range(min(limit, len(scores))):
        best = int(np.argmax(value))
        chosen.append(best)
        distance = np.minimum(distance, np.linalg.norm(roots - roots[best], axis=1))
        value = uncertainty * distance
        value[chosen] = -1.0
    is_left = np.ones(len(scores), bool)
    is_left[chosen] = False
    rest = np.flatnonzero(is_left)
    return np.concatenate([np.array(chosen, np.intp), rest[np.argsort(-uncertainty[rest], kind="stable")]])


def mistakes(scores: Floats, labels: Bools, has_labels: Bools) -> NDArray[np.intp]:
    """Order labelled images by how improbable the model finds their labels (see `mineral_batch.evaluation.audit`).

    Args:
        scores: (N, L) probabilities.
        labels: (N, L) what the existing labels say.
        has_labels: (N,) which images have any row in the table of labels; others are left out.

    Returns:
        Indices of the labelled images, most suspicious first.
    """
    known = np.flatnonzero(has_labels)
    return known[np.argsort(-suspicion(scores[known], labels[known]), kind="stable")]


def by_mineral(scores: Floats, label: int) -> NDArray[np.intp]:
    """Order images by the probability of one label, highest first: (N,) indices."""
    return np.argsort(-scores[:, label], kind="stable")


def top(scores: Floats, count: int) -> list[tuple[int, float]]:
    """The most probable labels of one image: (index, probability), highest first.

    Args:
        scores: (L,) probabilities.
        count: how many.
    """
    order: Sequence[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return [(index, float(scores[index])) for index in order]


def _entropy(scores: Floats) -> Floats:
    clipped = np.clip(scores, _TINY, 1 - _TINY)
    return np.asarray(-(clipped * np.log(clipped) + (1 - clipped) * np.log1p(-clipped)), np.float64)
