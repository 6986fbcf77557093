"""Do probabilities mean what they say? Reliability, expected calibration error, log loss and Brier score.

All figures are over decisions: N images times L labels, each with a probability and a truth. Shapes as in
`mineral_batch.evaluation.metrics`. Beside a model stands the baseline that says nothing about an image: for every label
its prevalence among the judged images. It is calibrated by definition, so what a model must beat is its log loss and
Brier score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.evaluation.metrics import checked
from mineral_batch.model.calibration import ProbabilityScores

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools, Floats

BINS = 10

#: How the printed figures are defined.
ECE_DEFINITION = f"expected calibration error, {BINS} equal-width bins over all decisions (Guo et al. 2017)"

# Float32 knows no probability between this and 1; a certain and wrong answer costs 16.6.
_LEAST = 2.0**-24


class Reliability(NamedTuple):
    """How often decisions of a predicted probability are right, in bins of equal width (Guo et al. 2017).

    Attributes:
        predicted: (B,) mean probability in the bin, NaN where it is empty.
        observed: (B,) fraction of its decisions that are true, NaN where it is empty.
        decisions: (B,) how many there are.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    decisions: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: sum_b decisions_b / sum(decisions) |observed_b - predicted_b|."""
        gap = np.nan_to_num(np.abs(self.observed - self.predicted))
        return float((gap * self.decisions).sum() / max(1, self.decisions.sum()))


@dataclass(frozen=True)
class CalibrationFigures:
    """Everything that `evaluate` and the report say about calibration.

    Attributes:
        reliability: of all decisions.
        scores: of the model.
        baseline: of always giving each label its prevalence.
        labels_predicted: labels per image as the probabilities say: their sum, mean over the images.
        labels_true: labels per image.
    """

    reliability: Reliability
    scores: ProbabilityScores
    baseline: ProbabilityScores
    labels_predicted: float
    labels_true: float


def calibration_figures(scores: Floats, truth: Bools) -> CalibrationFigures:
    """Judge probabilities.

    Args:
        scores: (N, L) probabilities, 0..1, N at least 1.
        truth: (N, L) bool.

    Raises:
        DataError: if a probability is NaN.
        ValueError: if the shapes differ.
    """
    scores, truth = checked(np.asarray(scores, np.float64), truth, ndim=2)
    prevalence = np.broadcast_to(truth.mean(axis=0), truth.shape)
    return CalibrationFigures(
        reliability=reliability(scores, truth),
        scores=probability_scores(scores, truth),
        baseline=probability_scores(prevalence, truth),
        labels_predicted=float(scores.sum(axis=1).mean()),
        labels_true=float(truth.sum(axis=1).mean()),
    )


def probability_scores(scores: Floats, truth: Bools) -> ProbabilityScores:
    """ECE, log loss and Brier score of probabilities (N, L) with truth (N, L) bool."""
    values = np.asarray(scores, np.float64)
    of_truth = np.where(truth, values, 1 - values)
    return ProbabilityScores(
        ece=reliability(values, truth).error,
        log_loss=float(-np.log(np.maximum(of_truth, _LEAST)).mean()),
        brier=float(((values - truth) ** 2).mean()),
    )


def calibration_drift(one: Floats, other: Floats, truth: Bools) -> float:
    """How much higher the calibration error of `other` is, both in the bins of `one`.

    A probability that only crosses the edge of a bin changes nothing, so that a few images are enough to compare two
    forms of one model.

    Args:
        one: (N, L) probabilities, the reference.
        other: (N, L).
        truth: (N, L) bool.
    """
    return reliability(other, truth, binned_by=one).error - reliability(one, truth).error


def reliability(scores: Floats, truth: Bools, bins: int = BINS, *, binned_by: Floats | None = None) -> Reliability:
    """The reliability of all decisions together.

    Args:
        scores: probabilities of any shape, 0..1.
        truth: bool, the same shape.
        bins: of equal width; a probability on an edge belongs to the bin above it.
        binned_by: other probabilities that say which decision is in which bin.
    """
    values, right = np.asarray(scores, np.float64).ravel(), truth.ravel()
    keys = values if binned_by is None else np.asarray(binned_by, np.float64).ravel()
    place = np.minimum((keys * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        predicted, observed = (np.bincount(place, weights=w, minlength=bins) / count for w in (values, right * 1.0))
    return Reliability(predicted, observed, count)
