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
#: Images among which the first ones are chosen, and whose features are computed (`mineral_batch.review.features`).
CANDIDATES = 2000
# Images that are spread over what the model sees; behind them the order is by worth alone.
_DIVERSE = 500
_TINY = 1e-7


def worth(scores: Floats) -> Floats:
    """How much the labels of an image would teach: its uncertainty, in labels of which there are few images.

        worth = sum_l H(p_l) / (1 + sum over all images of p_l),

    with H the binary entropy. The divisor is the expected number of images that show l, so a doubt about a rare mineral
    counts more than one about quartz, and every label has a share in the order. benchmarks/README.md compares it with
    the entropy alone, with margins and with random order.

    Args:
        scores: (N, L) probabilities.

    Returns:
        (N,)
    """
    return np.asarray(_entropy(scores) @ (1.0 / (1.0 + scores.sum(axis=0))))


def teaches(scores: Floats, vectors: NDArray[np.float32], places: NDArray[np.intp]) -> NDArray[np.intp]:
    """Order images by worth and diversity: each next one is worth much and unlike those before it.

    Unlikeness is the cosine distance, of standardized vectors, to the nearest image chosen so far; its product with the
    worth is maximized greedily (a farthest-first traversal, weighted), for the first 500. The others follow by worth.

    Args:
        scores: (N, L) probabilities.
        vectors: (K, D) of some images, such as the `CANDIDATES` of most worth: what the model sees in them.
        places: (K,) which images these are.

    Returns:
        (N,) indices.
    """
    value = worth(scores)
    chosen = places[_spread(value[places], _directions(vectors), _DIVERSE)]
    is_left = np.ones(len(scores), bool)
    is_left[chosen] = False
    rest = np.flatnonzero(is_left)
    return np.concatenate([chosen, rest[np.argsort(-value[rest], kind="stable")]])


def candidates(scores: Floats) -> NDArray[np.intp]:
    """The images of most worth, whose features `teaches` needs: (K,) indices, K at most `CANDIDATES`."""
    return np.argsort(-worth(scores), kind="stable")[:CANDIDATES]


def answers(scores: Floats) -> NDArray[np.float32]:
    """The model's answers as vectors (N, L), for images whose features are not known: square roots (Hellinger)."""
    return np.sqrt(scores).astype(np.float32)


def _spread(value: Floats, vectors: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """The greedy choice: (count,) indices."""
    distance = np.full(len(value), 2.0)  # as from an opposite one
    chosen: list[int] = []
    for _ in range(min(count, len(value))):
        product = value * distance
        product[chosen] = -1.0
        best = int(np.argmax(product))
        chosen.append(best)
        distance = np.minimum(distance, 1.0 - vectors @ vectors[best])
    return np.array(chosen, np.intp)


def _directions(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every coordinate with mean 0 and spread 1, then every vector of length 1."""
    normal = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), _TINY)
    return np.asarray(normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), _TINY), np.float32)


def mistakes(scores: Floats, labels: Bools, has_labels: Bools) -> NDArray[np.intp]:
    """Order labeled images by how improbable the model finds their labels (see `mineral_batch.evaluation.audit`).

    Args:
        scores: (N, L) probabilities.
        labels: (N, L) what the existing labels say.
        has_labels: (N,) which images have any row in the table of labels; others are left out.

    Returns:
        Indices of the labeled images, most suspicious first.
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
