"""Thresholds: from probabilities to decisions, and how to choose them."""

from __future__ import annotations

from math import lgamma
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from mineral_batch.errors import OptionError
from mineral_batch.evaluation.metrics import checked

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools, Floats

#: Labels with fewer positives than this share one threshold: the best cut of four images is chance.
MIN_SUPPORT: Final = 5


#: By expected F1 no label is called present that is less probable than one in five. The F1 of a label that the model
#: hardly knows is highest far below, where nearly all calls are wrong; train/README.md has the comparison.
LEAST_PROBABLE: Final = 0.2

#: How sure a promise of precision or recall is, one-sided.
CONFIDENCE: Final = 0.95

# Fixed before any image is seen, so that a bound holds although the threshold was chosen by it.
_PRECISION_STEP = 0.05
_RECALL_GRID = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, *(round(0.1 + 0.05 * i, 2) for i in range(18)))
_BISECTIONS = 40


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
    """Per label the threshold that maximizes F_beta on these images.

    F_beta = (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP) (van Rijsbergen 1979). The threshold lies midway
    between the lowest score called present and the next one below (0 below the last); of several best cuts the one
    that calls the fewest images. Figures for the images that were tuned on are optimistic: tune on validation.

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


def expected_f1_thresholds(scores: Floats, truth: Bools) -> NDArray[np.float64]:
    """Per label the threshold of the highest F1 that calibrated probabilities expect on images like these.

    Of the images called present the sum of the probabilities is expected to be right, so F1 = 2 sum(called) /
    (number called + sum(all)); at its maximum the threshold is half of that F1 (Lipton et al. 2014, arXiv 1402.1892).
    What the images show has already fitted the calibration, and is not used again: so a rare label gets a threshold of
    its own, which is not that of the few images that happen to show it.

    Args:
        scores: (N, L) calibrated probabilities, 0..1.
        truth: (N, L) bool.

    Returns:
        (L,) thresholds, for `binarize`, at least `LEAST_PROBABLE`; 0.5 for a label that no image shows, because nothing
        supports its probabilities.
    """
    scores, truth = checked(scores, truth, ndim=2)
    thresholds = np.full(scores.shape[1], 0.5)
    for label in np.flatnonzero(truth.any(axis=0) & scores.any(axis=0)):
        column = scores[:, label].astype(np.float64)
        thresholds[label] = max(LEAST_PROBABLE, _best_threshold(column, column, 1.0))
    return thresholds


def _best_threshold(scores: NDArray[np.float64], truth: Bools | NDArray[np.float64], beta: float) -> float:
    """The cut of one label with the highest F_beta; the truth has positives, or is a probability for each image."""
    order = np.argsort(-scores, kind="stable")
    ranked, below = scores[order], np.append(scores[order][1:], 0.0)
    called = np.arange(1, len(scores) + 1)
    f_beta = (1 + beta**2) * truth[order].cumsum() / (beta**2 * truth.sum() + called)
    is_cut = np.append(ranked[:-1] > ranked[1:], True)
    best = int(np.argmax(np.where(is_cut, f_beta, -1.0)))
    middle = (ranked[best] + below[best]) / 2
    # Between two neighboring floats there is no middle: it rounds to one of them.
    return float(middle if middle > below[best] else ranked[best])


class Rule(NamedTuple):
    """What thresholds are chosen for.

    Attributes:
        goal: `f1`, `precision` or `recall`.
        value: the precision or recall to reach, 0..1; None for `f1`.
    """

    goal: str
    value: float | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `f1`, `precision=0.9` or `recall=0.9`.

        Raises:
            OptionError: if it is none of them.
        """
        goal, _, number = text.partition("=")
        if text == "f1":
            return cls("f1")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if goal not in ("precision", "recall") or not 0.0 < value < 1.0:
            raise OptionError(f"'{text}' is not a rule for thresholds: use f1, precision=0.9 or recall=0.9")
        return cls(goal, value)

    def __str__(self) -> str:
        return self.goal if self.value is None else f"{self.goal}={self.value:g}"


def rule_in_words(text: str) -> str:
    """How thresholds were chosen by the text of a `Rule`: "a precision of 0.9"; any other text as it is."""
    name, _, value = text.partition("=")
    return f"a {name} of {value}" if value else {"f1": "the highest F1"}.get(name, name)


class Promise(NamedTuple):
    """Thresholds for a rule, and what can be promised of them.

    Attributes:
        thresholds: (L,).
        bound: (L,) lower bound of the precision or recall at the threshold, at `CONFIDENCE`, by Clopper and Pearson
            (1934); NaN where nothing can be promised.
    """

    thresholds: NDArray[np.float64]
    bound: NDArray[np.float64]


def promise_thresholds(scores: Floats, truth: Bools, rule: Rule) -> Promise:
    """Per label the threshold of the most recall at a precision, or of the most precision at a recall.

    The thresholds of a fixed sequence are tested one after the other, the safest first, each by the exact binomial
    bound on these images; the last one before the first failure is taken. In this order the chance that any failing
    threshold passes is 1 - `CONFIDENCE` for each label (fixed-sequence testing, Angelopoulos et al. 2021, "Learn then
    Test"). For precision the sequence goes down from the threshold that equals it: calibrated probabilities at or above
    0.9 are right in nine of ten. For recall it goes up from 0.

    A label without a threshold that passes, because too few images show it, gets what calibration alone says: for
    precision that first threshold, for recall the highest one above which the probabilities say that enough is found.

    Args:
        scores: (N, L) calibrated probabilities.
        truth: (N, L) bool.
        rule: with a value.
    """
    scores, truth = checked(scores, truth, ndim=2)
    assert rule.value is not None
    choose = _precision_threshold if rule.goal == "precision" else _recall_threshold
    found = [choose(scores[:, label], truth[:, label], rule.value) for label in range(scores.shape[1])]
    thresholds, bounds = np.array(found, np.float64).reshape(-1, 2).T
    return Promise(thresholds, bounds)


def _precision_threshold(scores: Floats, truth: Bools, value: float) -> tuple[float, float]:
    """(threshold, bound) of one label."""
    best, bound = value, float("nan")
    for step in range(int(value / _PRECISION_STEP)):
        threshold = value - step * _PRECISION_STEP
        called = scores >= threshold
        lower = lower_bound(int(truth[called].sum()), int(called.sum()))
        if lower < value:
            break
        best, bound = threshold, lower
    return best, bound


def _recall_threshold(scores: Floats, truth: Bools, value: float) -> tuple[float, float]:
    """(threshold, bound) of one label."""
    best, bound = float("nan"), float("nan")
    for threshold in _RECALL_GRID:
        lower = lower_bound(int(truth[scores >= threshold].sum()), int(truth.sum()))
        if lower < value:
            break
        best, bound = threshold, lower
    return (_expected_recall_threshold(scores, value) if np.isnan(best) else best), bound


def _expected_recall_threshold(scores: Floats, value: float) -> float:
    """The highest score at or above which the probabilities add up to the share `value` of their sum."""
    ranked = np.sort(scores)[::-1]
    share = ranked.cumsum() / max(ranked.sum(), np.finfo(np.float64).tiny)
    return float(ranked[min(int(np.searchsorted(share, value)), len(ranked) - 1)])


def lower_bound(successes: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided exact lower bound of a share (Clopper and Pearson 1934); 0 without a success.

    Args:
        successes: 0..trials.
        trials: at least 0.
        confidence: 0..1.
    """
    if successes == 0:
        return 0.0
    counts = np.arange(successes, trials + 1)
    choose = np.array([lgamma(trials + 1) - lgamma(k + 1) - lgamma(trials - k + 1) for k in counts.tolist()])
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        with np.errstate(divide="ignore"):
            tail = np.exp(choose + counts * np.log(middle) + (trials - counts) * np.log1p(-middle)).sum()
        low, high = (middle, high) if tail < 1 - confidence else (low, middle)
    return low
