"""What a report says about accuracy: curves, confusions and the worst mistakes. numpy only.

Shapes as in `mineral_batch.evaluation.metrics`: N images, L labels, scores (N, L), truth (N, L) bool.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.evaluation.evaluate import Evaluation, evaluate, join
from mineral_batch.evaluation.levels import readings_of
from mineral_batch.model.calibration import log_odds

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools, Floats
    from mineral_batch.results.read import Results

_GRID = np.linspace(0.0, 1.0, 101)
_WORST = 12
_RESAMPLES = 1000
# Beyond this many images the interval is narrow and its thousand resamples take minutes.
_RESAMPLED_UP_TO = 20_000


class Curve(NamedTuple):
    """Precision against recall of one label: from the highest score down, one point per distinct score."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


class ThresholdCurves(NamedTuple):
    """Figures of one label at every threshold of a grid, each (T,); NaN where nothing is called."""

    threshold: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]


class Mistake(NamedTuple):
    """A wrong decision: `image` is an index into the judged images, `label` into the labels."""

    image: int
    label: int


@dataclass(frozen=True)
class Accuracy:
    """Everything about one joined table that a report shows.

    Attributes:
        source: what was compared, in words.
        evaluation: AP, mAP and decisions.
        rows: (M,) for each judged image its index in the predictions.
        truth: (M, L) bool.
        curves: L.
        thresholds: L.
        confusion: (L, L + 1) int64; see `confusion`.
        false_alarms: the wrong calls, the most confident first.
        missed: the labels that were not called, the most confidently absent first.
        notes: what was left out of the comparison, and how varieties count.
    """

    source: str
    evaluation: Evaluation
    rows: NDArray[np.int64]
    truth: Bools
    curves: tuple[Curve, ...]
    thresholds: tuple[ThresholdCurves, ...]
    confusion: NDArray[np.int64]
    false_alarms: tuple[Mistake, ...]
    missed: tuple[Mistake, ...]
    notes: tuple[str, ...] = ()


def judge(results: Results, labels: Path, split: str | None, *, ignore_unknown: bool = False) -> Accuracy:
    """Compare a run with labels.

    Args:
        results: of the run.
        labels: CSV with the columns `path` and `labels`.
        split: judge only rows that have this in their column `split`.
        ignore_unknown: see `mineral_batch.evaluation.evaluate.join`.

    Raises:
        DataError: see `mineral_batch.evaluation.evaluate.join`.
    """
    joined = join(results.table, labels, split, results.predictions.labels, ignore_unknown=ignore_unknown)
    table, truth = joined.predictions, joined.truth
    index = {path: row for row, path in enumerate(results.predictions.paths)}
    count = range(len(table.labels))
    alarms, missed = worst_mistakes(table.scores, table.called, truth, results.thresholds)
    left_out = (
        (joined.unlabeled, "prediction has no label", "predictions have no labels"),
        (joined.other_splits, "prediction belongs to another split", "predictions belong to other splits"),
        (len(joined.missing), "labeled photograph has no prediction", "labeled photographs have no prediction"),
    )
    return Accuracy(
        source=f"split {split} of {labels.name}" if split else labels.name,
        evaluation=evaluate(joined, resamples=_RESAMPLES if len(truth) <= _RESAMPLED_UP_TO else 0),
        rows=np.array([index[path] for path in table.paths], np.int64),
        truth=truth,
        curves=tuple(precision_recall_curve(table.scores[:, i], truth[:, i]) for i in count),
        thresholds=tuple(threshold_curves(table.scores[:, i], truth[:, i]) for i in count),
        confusion=confusion(table.called, truth),
        false_alarms=alarms,
        missed=missed,
        notes=(
            *(f"{n} {one if n == 1 else many}" for n, one, many in left_out if n),
            *joined.notes,
            *map(str, readings_of(joined)),
        ),
    )


def precision_recall_curve(scores: Floats, truth: Bools) -> Curve:
    """The points that average precision sums over (Wu et al. 2022, equation 6); empty without a positive.

    Args:
        scores: (N,).
        truth: (N,) bool.
    """
    if not truth.any():
        return Curve(np.empty(0), np.empty(0))
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    is_last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one threshold
    called = np.arange(1, len(scores) + 1)
    return Curve((hits / hits[-1])[is_last], (hits / called)[is_last])


def threshold_curves(scores: Floats, truth: Bools) -> ThresholdCurves:
    """Precision, recall and F1 of one label when everything at or above each threshold is called present.

    Args:
        scores: (N,).
        truth: (N,) bool.
    """
    ranked, positives = np.sort(scores), np.sort(scores[truth])
    called = len(ranked) - np.searchsorted(ranked, _GRID)
    hits = len(positives) - np.searchsorted(positives, _GRID)
    support = np.full(len(_GRID), len(positives))
    return ThresholdCurves(_GRID, _ratio(hits, called), _ratio(hits, support), _ratio(2 * hits, called + support))


def confusion(called: Bools, truth: Bools) -> NDArray[np.int64]:
    """Which label is called instead of which, (L, L + 1) int64.

    Row t, column t: images with t in which t was called. Row t, column j: images with t in which t was missed
    and j was called wrongly; with several wrong calls an image counts in several columns. Last column: images with
    t in which t was missed and nothing was called wrongly.

    Args:
        called: (N, L) bool.
        truth: (N, L) bool.
    """
    missed, wrong = truth & ~called, called & ~truth
    table = missed.T.astype(np.int64) @ wrong.astype(np.int64)
    np.fill_diagonal(table, (truth & called).sum(axis=0))
    without = (missed & ~wrong.any(axis=1, keepdims=True)).sum(axis=0)
    return np.column_stack([table, without])


def worst_mistakes(
    scores: Floats, called: Bools, truth: Bools, thresholds: Floats, count: int = _WORST
) -> tuple[tuple[Mistake, ...], tuple[Mistake, ...]]:
    """The wrong calls and the missed labels whose odds are farthest from their threshold's, each at most `count`.

    Args:
        scores: (N, L).
        called: (N, L) bool.
        truth: (N, L) bool.
        thresholds: (L,).
        count: how many of each kind.
    """
    distance = log_odds(scores) - log_odds(thresholds)
    return _farthest(called & ~truth, -distance, count), _farthest(truth & ~called, distance, count)


def _farthest(chosen: Bools, key: NDArray[np.float64], count: int) -> tuple[Mistake, ...]:
    """The chosen decisions with the smallest keys, one per image."""
    places = np.argwhere(chosen)
    order = np.argsort(key[chosen], kind="stable")
    found: dict[int, Mistake] = {}
    for image, label in places[order].tolist():
        found.setdefault(image, Mistake(image, label))
        if len(found) == count:
            break
    return tuple(found.values())


def _ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> NDArray[np.float64]:
    """`part / whole` in float64, NaN where the whole is 0."""
    out = np.full(np.shape(part), np.nan)
    np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
    return out
