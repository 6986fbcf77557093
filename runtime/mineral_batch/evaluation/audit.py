"""Which existing labels look wrong: the model finds another label much more likely than the one given.

The score of an image is the difference of log-odds between the most probable label that it was not given and the least
probable one that it was: the logarithm of how many times the odds of the suggestion are those of the label. An image
labeled with nothing was given "none of them", whose probability is prod(1 - p). It needs probabilities from a model
that was not trained on these labels. benchmarks/README.md compares it with other scores, among them the log loss and
the margin of confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mineral_batch.evaluation.metrics import Bools, Floats
from mineral_batch.model.calibration import log_odds

#: What "given nothing" is called.
NONE = "none"
#: From these odds on a label looks wrong, if the suggestion is not itself improbable.
LIKELY = 20.0
#: The least probability of such a suggestion. Of labels with these odds, 22% were planted errors where the
#: suggestion was less probable, 80% where it was not (benchmarks/README.md, 5% planted).
PROBABLE = 0.3
_TINY = 1e-7  # a float32 near 1 says no more


@dataclass(frozen=True)
class Suspect:
    """An image whose label looks wrong.

    Attributes:
        row: of the image.
        given: the least probable of its labels that the model has; else another label of it, or `none`.
        suggested: the most probable label that it does not have.
        odds_ratio: how many times the odds of the suggestion are those of the label.
        probability: of the label that was given; of no label at all for `none` and for labels the model does not have.
        suggested_probability: of the suggestion.
        alike: rows of the images with the suggested label that look most alike to the model, nearest first.
    """

    row: int
    given: str
    suggested: str
    odds_ratio: float
    probability: float
    suggested_probability: float
    alike: tuple[int, ...]

    @property
    def looks_wrong(self) -> bool:
        """Whether it does, or is less certain; see `look_wrong`."""
        return self.odds_ratio >= LIKELY and self.suggested_probability >= PROBABLE


def suspicion(scores: Floats, labels: Bools) -> Floats:
    """The score of each image, higher for a more suspicious label.

    Args:
        scores: (N, L) probabilities.
        labels: (N, L) what the existing labels say.

    Returns:
        (N,) differences of log-odds.
    """
    given, suggested = _extremes(scores, labels)
    return log_odds(suggested, _TINY) - log_odds(given, _TINY)


def look_wrong(scores: Floats, labels: Bools) -> Bools:
    """Which images have a label that looks wrong: (N,), from `LIKELY` odds and a suggestion of `PROBABLE` on.

    Args:
        scores: (N, L) probabilities.
        labels: (N, L) what the existing labels say.
    """
    _, suggested = _extremes(scores, labels)
    wrong: Bools = (suspicion(scores, labels) >= np.log(LIKELY)) & (suggested >= PROBABLE)
    return wrong


def suspects(
    scores: Floats,
    truth: Bools,
    labels: Sequence[str],
    count: int,
    alike: int = 3,
    others: Sequence[Sequence[str]] = (),
) -> Iterator[Suspect]:
    """Yield the most suspicious images, worst first.

    Args:
        scores: (N, L) probabilities.
        truth: (N, L) what the existing labels say.
        labels: L names.
        count: how many at most; images whose label is more likely than every other are left out.
        alike: how many similar images of each.
        others: of each of the N images, its labels that the model does not have; empty if there are none.
    """
    found = suspicion(scores, truth)
    of_given, of_suggested = _extremes(scores, truth)
    order = np.argsort(-found, kind="stable")[:count]
    logits = log_odds(scores, _TINY).astype(np.float32)
    for row in order[found[order] > 0].tolist():
        other = int(np.where(truth[row], -1.0, scores[row]).argmax())
        own = int(np.where(truth[row], scores[row], 2.0).argmin()) if truth[row].any() else None
        near = _nearest(logits, row, np.flatnonzero(truth[:, other]), alike)
        given = labels[own] if own is not None else next(iter(others[row] if others else ()), NONE)
        ratio = float(np.exp(min(found[row], 700.0)))
        yield Suspect(row, given, labels[other], ratio, float(of_given[row]), float(of_suggested[row]), tuple(near))


def _extremes(scores: Floats, labels: Bools) -> tuple[Floats, Floats]:
    """The probability of the least probable label of each image, and of the most probable other one: (N,) each."""
    none = np.prod(1.0 - scores, axis=1)
    given = np.where(labels.any(axis=1), np.where(labels, scores, 2.0).min(axis=1), none)
    return given, np.where(labels, 0.0, scores).max(axis=1)


def _nearest(logits: NDArray[np.float32], row: int, among: NDArray[np.intp], count: int) -> list[int]:
    """The images whose log-odds have the smallest distance to those of one."""
    others = among[among != row]
    distance = np.linalg.norm(logits[others] - logits[row], axis=1)
    nearest: list[int] = others[np.argsort(distance, kind="stable")[:count]].tolist()
    return nearest
