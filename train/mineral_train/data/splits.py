"""Split into training, validation and test sets that are alike in their labels and share no specimen.

Iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification of multi-label data"), applied
to groups of images instead of single ones: the rarest label is distributed first, because later there is no choice
left for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import DataError
from mineral_train.data.manifest import SPLITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: The paper's (section 2): training, validation, test.
PAPER_SHARES = (18.0, 1.0, 1.0)


def stratified_split(
    targets: NDArray[np.bool_],
    groups: NDArray[np.int64],
    shares: Sequence[float] = PAPER_SHARES,
    seed: int = 0,
) -> list[str]:
    """Assign a split to each of N images.

    Every split gets its share of each label's images, and of those without a label, as nearly as whole groups
    allow; the same input and seed give the same split.

    Args:
        targets: (N, L), which labels an image has.
        groups: (N,) numbers; images of one group come into one split.
        shares: of training, validation and test, in any unit. A split of share 0 stays empty.
        seed: breaks ties between groups.

    Raises:
        DataError: if a share is negative or that of training is 0.
    """
    wanted = fractions_of(shares)
    _, group_of = np.unique(groups, return_inverse=True)
    counts = _group_counts(targets, group_of)
    chosen = _distribute(counts, wanted, np.random.default_rng(seed))
    return [SPLITS[chosen[group]] for group in group_of]


def fractions_of(shares: Sequence[float]) -> NDArray[np.float64]:
    """Normalize shares of training, validation and test to a sum of 1, (3,).

    Raises:
        DataError: if they are not three, one is negative, or that of training is 0.
    """
    fractions: NDArray[np.float64] = np.array(shares, np.float64)
    if len(fractions) != len(SPLITS) or not (np.isfinite(fractions).all() and fractions.min() >= 0 < fractions[0]):
        raise DataError(
            f"a split is three shares, training:validation:test, none negative and training above 0, "
            f"such as 18:1:1 or 70:10:20; not {':'.join(f'{share:g}' for share in shares)}"
        )
    fractions /= fractions.sum()
    return fractions


def _group_counts(targets: NDArray[np.bool_], group_of: NDArray[np.intp]) -> NDArray[np.float64]:
    """(G, L + 2): of each group, the images with each label, those with none, and all."""
    unlabeled = ~targets.any(axis=1, keepdims=True)
    kinds = np.concatenate([targets, unlabeled, np.ones_like(unlabeled)], axis=1)
    counts = np.zeros((int(group_of.max(initial=-1)) + 1, kinds.shape[1]))
    np.add.at(counts, group_of, kinds)
    return counts


def _distribute(
    counts: NDArray[np.float64], fractions: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(G,) the number of the split of each group, by (G, L + 2) counts and (3,) fractions."""
    chosen = np.full(len(counts), -1)
    desired = fractions[:, None] * counts.sum(axis=0)  # (3, L + 2), what each split still lacks
    desired[fractions == 0] = -np.inf
    while (open_groups := np.flatnonzero(chosen < 0)).size:
        kind = _rarest(counts[open_groups, :-1])
        members = rng.permutation(open_groups[counts[open_groups, kind] > 0])
        # Large groups first: the small ones can still level out what they leave.
        for group in members[np.argsort(-counts[members, kind], kind="stable")]:
            split = _neediest(desired[:, kind], desired[:, -1], rng)
            chosen[group] = split
            desired[split] -= counts[group]
    return chosen


def _rarest(counts: NDArray[np.float64]) -> int:
    """The label with the fewest images left, of those that have any."""
    left = counts.sum(axis=0)
    return int(np.where(left > 0, left, np.inf).argmin())


def _neediest(of_kind: NDArray[np.float64], of_all: NDArray[np.float64], rng: np.random.Generator) -> int:
    """The split that lacks most images of a label; among equals, most images; among equals, any."""
    return max(range(len(of_kind)), key=lambda s: (of_kind[s], of_all[s], rng.random()))


def stratified_folds(targets: NDArray[np.bool_], groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Assign each of N images to one of `folds` equal parts, as `stratified_split` does; (N,) numbers from 0."""
    _, group_of = np.unique(groups, return_inverse=True)
    counts = _group_counts(targets, group_of)
    chosen = _distribute(counts, np.full(folds, 1 / folds), np.random.default_rng(seed))
    return chosen[group_of]
