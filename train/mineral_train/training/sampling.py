"""Which images an epoch draws, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def repeat_factors(truth: NDArray[np.bool_], threshold: float) -> NDArray[np.float64]:
    """How often each of N images is drawn in an epoch, on average (Gupta et al. 2019, LVIS, section 4.3).

    A label that the share f of the images shows has the factor max(1, sqrt(threshold / f)); an image has the largest of
    its labels, and 1 without any.

    Args:
        truth: (N, L), which labels an image has.
        threshold: labels rarer than this share are drawn more often; 0 for none.
    """
    share = truth.mean(axis=0)
    factors = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1 / len(truth))))
    largest: NDArray[np.float64] = np.where(truth, factors, 1.0).max(axis=1, initial=1.0)
    return largest


class Sampler:
    """Gives the order of each epoch; every epoch has the same length, so that steps can be counted ahead.

    Args:
        truth: (N, L), which labels an image has.
        threshold: of `repeat_factors`.
        seed: of the run.

    Attributes:
        factors: (N,) of `repeat_factors`.
        draws: how many an epoch has.
    """

    def __init__(self, truth: NDArray[np.bool_], threshold: float, seed: int) -> None:
        self.factors = repeat_factors(truth, threshold)
        self._whole = np.floor(self.factors).astype(np.int64)
        self._parts = self.factors - self._whole
        self.draws = int(self._whole.sum()) + round(float(self._parts.sum()))
        self._seed = seed

    def order(self, epoch: int) -> list[int]:
        """Draw for one epoch: numbers i + N k, where k counts how often the image i was drawn before."""
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self.factors))
        if self.draws == len(order):
            return [int(place) for place in order]
        repeated = np.repeat(order, self._times(order, rng.random()))
        again = np.zeros(len(repeated), np.int64)
        again[1:] = repeated[1:] == repeated[:-1]
        for place in np.flatnonzero(again).tolist():
            again[place] += again[place - 1]
        drawn = repeated + len(self.factors) * again
        return [int(place) for place in rng.permutation(drawn)]

    def _times(self, order: NDArray[np.int64], start: float) -> NDArray[np.int64]:
        """How often each image of `order` is drawn: what is whole of its factor, and the rest by systematic sampling.

        Systematic, because independent draws would give each epoch another length.
        """
        wanted = self.draws - int(self._whole.sum())
        ends = np.cumsum(self._parts[order])
        ends *= wanted / max(float(ends[-1]), 1e-12)
        ends[-1] = wanted
        return self._whole[order] + np.diff(np.floor(ends + start), prepend=np.floor(start)).astype(np.int64)
