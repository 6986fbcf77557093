"""Compare a table of predictions with a label table: join them, evaluate, tune thresholds."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.calibration import CalibrationFigures, calibration_figures
from mineral_batch.evaluation.labels import (
    is_undetermined,
    match_paths,
    name_labels,
    of_split,
    read_labels,
    require_known,
    unknown_note,
)
from mineral_batch.evaluation.metrics import (
    DEFINITIONS,
    EQUATION_6,
    Bools,
    Definition,
    MeanAP,
    PrecisionRecallF1,
    bootstrap_interval,
    mean_average_precision,
    precision_recall_f1,
)
from mineral_batch.evaluation.thresholds import MIN_SUPPORT, Rule, binarize, promise_thresholds, tune_thresholds
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import shown
from mineral_batch.results.manifest import labels_of_run
from mineral_batch.results.predictions import Predictions, indicator, read_predictions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.evaluation.calibration import CalibrationFigures
from mineral_batch.evaluation.labels import LabelRow


@dataclass(frozen=True)
class Joined:
    """The images that have both a prediction and labels, in the order of the label table.

    Attributes:
        predictions: of these images only.
        truth: (N, L) bool.
        unlabeled: how many predictions have no labels.
        other_splits: how many have labels, but of another split than was chosen.
        missing: paths of the labeled images that have no prediction.
        renamed: names in the label table that were read as another name of a label.
        notes: what else the user should know about the match.
        splits: the names in the column `split` of the rows that were judged.
        beside: the predictions that have no labels, where `join` was asked to keep them.
        noun: what a row is: an image or a specimen.
        images: how many images the rows are of.
        others: of each of the N images, its labels that are not among the L: it counts as showing none of these.
    """

    predictions: Predictions
    truth: Bools
    unlabeled: int
    other_splits: int
    missing: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    beside: Predictions | None = None
    noun: Literal["image", "specimen"] = "image"
    images: int = 0
    others: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Every figure about one joined table.

    Attributes:
        labels: L.
        ap: per definition, the AP per label and their mean.
        interval: 95% bootstrap interval of the mAP by equation 6, None when not asked for.
        decisions: precision, recall and F1 of what was called present.
        thresholds: (L,) that made the decisions; None when they are the column `minerals`.
        calibration: of the probabilities.
    """

    labels: tuple[str, ...]
    ap: Mapping[Definition, MeanAP]
    interval: tuple[float, float] | None
    decisions: PrecisionRecallF1
    thresholds: tuple[float, ...] | None
    calibration: CalibrationFigures

    @property
    def mean_ap(self) -> MeanAP:
        """By the paper's equation 6."""
        return self.ap[EQUATION_6]


class Tuning(NamedTuple):
    """New thresholds, and the decisions on the same images with the old and with the new ones.

    Attributes:
        rule: that they were chosen by.
        thresholds: (L,).
        before: with the old thresholds.
        after: with the new ones.
        bound: (L,) what the rule promises of each label, NaN where it can promise nothing; None for `f1`.
    """

    rule: Rule
    thresholds: tuple[float, ...]
    before: PrecisionRecallF1
    after: PrecisionRecallF1
    bound: tuple[float, ...] | None = None

    def without_promise(self, labels: Sequence[str]) -> list[str]:
        """The labels of which nothing can be promised."""
        return [label for label, value in zip(labels, self.bound or (), strict=False) if np.isnan(value)]


def evaluate(joined: Joined, thresholds: Sequence[float] | None = None, resamples: int = 1000) -> Evaluation:
    """Judge probabilities and decisions.

    Args:
        joined: the images.
        thresholds: L, to make the decisions anew; None takes those of the column `minerals`.
        resamples: of the bootstrap; 0 leaves the interval out.
    """
    table, truth = joined.predictions, joined.truth
    called = table.called if thresholds is None else binarize(table.scores, np.array(thresholds))
    return Evaluation(
        labels=table.labels,
        ap={name: mean_average_precision(table.scores, truth, name) for name in DEFINITIONS},
        interval=bootstrap_interval(table.scores, truth, resamples) if resamples else None,
        decisions=precision_recall_f1(called, truth),
        thresholds=None if thresholds is None else tuple(thresholds),
        calibration=calibration_figures(table.scores, truth),
    )


def tune(joined: Joined, thresholds: Sequence[float], rule: Rule) -> Tuning:
    """Choose thresholds.

    Args:
        joined: the images to choose them on.
        thresholds: (L,) the present ones. By `f1` a label with `MIN_SUPPORT` images keeps its own where the new one has
            the same F1.
        rule: what they are chosen for.
    """
    scores, truth = joined.predictions.scores, joined.truth
    old = np.array(thresholds, np.float64)
    before = precision_recall_f1(binarize(scores, old), truth)
    if rule.goal != "f1":
        promise = promise_thresholds(scores, truth, rule)
        after = precision_recall_f1(binarize(scores, promise.thresholds), truth)
        return Tuning(rule, tuple(promise.thresholds.tolist()), before, after, tuple(promise.bound.tolist()))
    new = tune_thresholds(scores, truth, fallback=old)
    is_same = precision_recall_f1(binarize(scores, new), truth).f1 == before.f1
    new = np.where(is_same & (before.support >= MIN_SUPPORT), old, new)
    return Tuning(rule, tuple(new.tolist()), before, precision_recall_f1(binarize(scores, new), truth))


def join(
    predictions: str | Path,
    labels: str | Path,
    split: str | None = None,
    known: Sequence[str] | None = None,
    *,
    keep_unlabeled: bool = False,
    ignore_unknown: bool = False,
) -> Joined:
    """Read both tables and match their rows by path (`match_paths`).

    Rows whose label says that nobody knows it (`?`, `unknown`) are left out; a label without a column is none of those
    that are judged.

    Args:
        predictions: CSV file.
        labels: CSV file.
        split: judge only rows of this split; all rows when None.
        known: the labels to judge, in this order, each a column of the predictions. None takes those in run.json
            beside the predictions; without it the columns that `read_predictions` takes for labels.
        keep_unlabeled: keep the predictions without labels beside the others: specimens need them.
        ignore_unknown: go on where a label without a column looks like a misspelling of one that has one.

    Raises:
        DataError: when a table is unreadable, labels are misspelled or all without a column, a match is ambiguous or
            nothing matches.
    """
    everything = read_labels(labels)
    named = set(chain.from_iterable(row.labels for row in everything))
    table = read_predictions(predictions, named | {*MINERALS}, exactly=known or labels_of_run(Path(predictions)))
    everything, renamed = name_labels(everything, table.labels)
    matches = match_paths(table.paths, [row.path for row in everything])
    chosen = of_split(everything, split, labels)
    unsure = {row.path for row in everything if is_undetermined(row, table.labels)}
    rows = [row for row in chosen if row.path not in unsure]
    require_known(rows, table.labels, labels, "the model does not have", ignore_unknown=ignore_unknown)
    pairs = [(matches.index[row.path], row) for row in rows if row.path in matches.index]
    if not pairs:
        raise DataError(_nothing_matches(predictions, labels, table.paths, chosen))
    columns = set(table.labels)
    others = tuple(tuple(name for name in row.labels if name not in columns) for _, row in pairs)
    left_out = sum(row.path in matches.index for row in chosen) - len(pairs)
    note = f"Images left out, as their label says that it is not known: {left_out}" if left_out else None
    labeled = {place for path, place in matches.index.items() if path not in unsure}
    return Joined(
        predictions=table.select([index for index, _ in pairs]),
        truth=indicator([[name for name in row.labels if name in columns] for _, row in pairs], table.labels),
        unlabeled=len(table.paths) - len(matches.index),
        other_splits=len(matches.index) - len(pairs) - left_out,
        missing=tuple(row.path for row in rows if row.path not in matches.index),
        renamed=renamed,
        notes=tuple(filter(None, (matches.note(table.paths), unknown_note(others), note))),
        splits=tuple(sorted({row.split for row in rows} - {""})),
        beside=table.select([i for i in range(len(table.paths)) if i not in labeled]) if keep_unlabeled else None,
        images=len(pairs),
        others=others,
    )


def _nothing_matches(
    predictions: str | Path, labels: str | Path, paths: Sequence[str], rows: Sequence[LabelRow]
) -> str:
    example = f"for example {shown(paths[0])}" if paths else "empty"
    return (
        f"no image is in both tables: {predictions} has {len(paths)} rows ({example}), "
        f"{labels} has {len(rows)} (for example {shown(rows[0].path)}); paths match when one is the end of the other"
    )
