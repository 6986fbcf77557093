"""The figures of `mineral-batch evaluate` for people to read."""

from __future__ import annotations

import math
import textwrap
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.evaluation.calibration import ECE_DEFINITION
from mineral_batch.evaluation.evaluate import Evaluation, Joined, Tuning
from mineral_batch.evaluation.levels import readings_of
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6
from mineral_batch.evaluation.thresholds import CONFIDENCE, Rule
from mineral_batch.minerals.table import LEVELS, Level
from mineral_batch.results.csv import listed, shown
from mineral_batch.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.evaluation.calibration import CalibrationFigures
    from mineral_batch.model.contract import ModelContract

#: Names of the split that models are trained on.
TRAINING_SPLITS = ("train", "training")
_SHOWN = 5
_RENAMED = 40
# Of predictions without labels beside those of their specimens; of a single one.
_COUNTS = {False: "; those of labeled specimens count", True: "; it counts if its specimen has one"}


@dataclass(frozen=True)
class Comparison:
    """The tables that were compared, for the head of the text."""

    predictions: Path
    labels: Path
    split: str | None
    resamples: int
    level: Level
    specimen: str | None


def evaluation_lines(joined: Joined, result: Evaluation, compared: Comparison) -> list[str]:
    """The whole evaluation, a line each."""
    return [
        *_join_text(joined, compared),
        "",
        *_summary_lines(joined, result),
        "",
        *_label_lines(result, joined.noun),
        "",
        *_mean_ap_lines(result, compared.resamples, joined.noun),
        "",
        *_calibration_lines(result.calibration, joined.noun),
        "",
        *_decision_lines(result),
        *_empty_lines(result, joined.noun),
    ]


def _join_text(joined: Joined, compared: Comparison) -> list[str]:
    of_split = f", split {compared.split}" if compared.split else ""
    lines = [
        f"{counted(len(joined.truth), joined.noun)} {'is' if len(joined.truth) == 1 else 'are'} in both "
        f"{compared.predictions} and {compared.labels}{of_split}."
    ]
    if joined.unlabeled:
        one = joined.unlabeled == 1
        lacking = f"{counted(joined.unlabeled, 'prediction')} {'has no label' if one else 'have no labels'}"
        ignored = f" and {'is' if one else 'are'} ignored" if joined.noun == "image" else _COUNTS[one]
        lines.append(f"{lacking}{ignored}.")
    if joined.other_splits:
        belong = "belongs to another split and is" if joined.other_splits == 1 else "belong to other splits and are"
        lines.append(f"{counted(joined.other_splits, 'prediction')} {belong} ignored.")
    if joined.missing:
        first = ", ".join(map(shown, joined.missing[:_SHOWN]))
        more = f" and {len(joined.missing) - _SHOWN} more" if len(joined.missing) > _SHOWN else ""
        lacking = f"{counted(len(joined.missing), 'labeled image')} {'has' if len(joined.missing) == 1 else 'have'}"
        lines.append(f"{lacking} no prediction: {first}{more}.")
    if joined.renamed:
        renamed = [f"{name} = {label}" for name, label in joined.renamed.items()]
        lines.append(f"Read as: {listed(renamed, _RENAMED)}.")
    lines += [f"{note}." for note in joined.notes]
    lines += _reading(joined, compared.level)
    if joined.predictions.ignored:
        lines.append(f"Ignored columns (not labels): {listed(joined.predictions.ignored)}.")
    if compared.split is None and joined.splits:
        lines.append(
            f"Note: all splits of {compared.labels} are judged together ({', '.join(joined.splits)}); if the model was "
            "trained on one of them, the figures are too good: choose one with --split"
        )
    if compared.split is not None and compared.split.casefold() in TRAINING_SPLITS:
        lines.append(
            f"Warning: models are trained on the split {compared.split}; the figures of a model that has seen these "
            "images are too good"
        )
    return lines


def _summary_lines(joined: Joined, result: Evaluation) -> list[str]:
    """What most people want to know, without a technical term."""
    truth, found = joined.truth, result.decisions
    shown = truth.any(axis=1)
    if not shown.any():
        nothing = "so there is nothing to be right or wrong about but false alarms"
        return [f"No {joined.noun} in both tables has a label, {nothing}."]
    best = joined.predictions.scores.argmax(axis=1)
    right = truth[np.arange(len(truth)), best][shown]
    hits = round(float((found.recall * found.support).sum()))
    lines = [
        f"Best guess: right for {_percent(int(right.sum()), len(right))} of the {joined.noun}s that show one of these "
        f"{len(result.labels)} labels ({right.sum():,} of {len(right):,})."
    ]
    if called := int(found.called.sum()):
        lines.append(f"Minerals named: {_percent(hits, called)} are right ({hits:,} of {called:,}).")
    labeled = int(found.support.sum())
    return [*lines, f"Minerals labeled: {_percent(hits, labeled)} are found ({hits:,} of {labeled:,})."]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}%"


def _reading(joined: Joined, level: Level) -> list[str]:
    """How varieties beside their species are counted."""
    if level != LEVELS[0]:
        return [f"Labels are read at the level of {level}: {len(joined.predictions.labels)} names."]
    found = readings_of(joined)
    lines = [f"{one.line(joined.noun)}." for one in found]
    return [*lines, "--level species counts a variety as its species."] if lines else []


CSV_COLUMNS = ("mineral", f"ap ({EQUATION_6})", "support", "called", "precision", "recall", "f1", "threshold")
_NOUNS = {"image": "photographs", "specimen": "specimens"}
_COLUMNS = ("mineral", "AP", _NOUNS["image"], "called", "precision", "recall", "F1", "threshold")


def label_rows(result: Evaluation) -> list[tuple[str, float, int, int, float, float, float, float]]:
    """The table per mineral, `_COLUMNS`; NaN for a ratio 0 / 0 and for a threshold that is not known."""
    found = result.decisions
    thresholds = result.thresholds or [math.nan] * len(result.labels)
    figures = (
        result.mean_ap.per_label,
        found.support,
        found.called,
        np.where(found.called > 0, found.precision, np.nan),
        np.where(found.support > 0, found.recall, np.nan),
        np.where(found.called + found.support > 0, found.f1, np.nan),
    )
    return list(zip(result.labels, *(figure.tolist() for figure in figures), thresholds, strict=True))


def _label_lines(result: Evaluation, noun: str) -> list[str]:
    width = max(len("mineral"), *(len(name) for name in result.labels))
    named = [_NOUNS[noun] if name == _NOUNS["image"] else name for name in _COLUMNS]
    columns = named if result.thresholds else named[:-1]
    lines = ["  ".join([f"{columns[0]:<{width}}", *(f"{name:>{max(len(name), 6)}}" for name in columns[1:])])]
    for row in label_rows(result):
        if row[2] == row[3] == 0:
            continue  # neither labeled nor named in any image; `_empty_lines` names it
        cells = [f"{_cell(v):>{max(len(name), 6)}}" for name, v in zip(columns[1:], row[1:], strict=False)]
        lines.append("  ".join([f"{row[0]:<{width}}", *cells]))
    return lines


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4f}"


def _mean_ap_lines(result: Evaluation, resamples: int, noun: str) -> list[str]:
    lines = [
        "Mean average precision (mAP; 1 is perfect). When you quote a figure, use the first (equation-6) and give",
        f"the number of {noun}s.",
    ]
    for name, figure in result.ap.items():
        interval, text = "", DEFINITIONS[name]
        if name == EQUATION_6 and result.interval:
            low, high = (_cell(value) for value in result.interval)
            interval = f", 95% interval {low} to {high} ({resamples} bootstrap resamples of the {noun}s)"
            text += f".{_LOPSIDED}" if _is_lopsided(figure.mean, *result.interval) else ""
        lines.append(f"mAP {_cell(figure.mean)}  {name}{interval}")
        lines += textwrap.wrap(text, 100, initial_indent=" " * 12, subsequent_indent=" " * 12)
    return lines


_LOPSIDED = (
    " The interval extends further below than above, because AP is biased upwards for rare minerals and the interval "
    "corrects for it."
)


def _is_lopsided(mean: float, low: float, high: float) -> bool:
    return mean - low > 1.5 * (high - mean)


def _calibration_lines(figures: CalibrationFigures, noun: str) -> list[str]:
    rows = [
        f"{name:<9}{one:>10.4f}{'-' if name == 'ECE' else f'{base:.4f}':>12}"
        for name, one, base in zip(
            ("ECE", "log loss", "Brier"), astuple(figures.scores), astuple(figures.baseline), strict=True
        )
    ]
    return [
        "Calibration (do the probabilities mean what they say; lower is better), and what always predicting the",
        f"prevalence in these {noun}s would get:",
        f"{'':<9}{'model':>10}{'prevalence':>12}",
        *rows,
        *textwrap.wrap(
            f"ECE: {ECE_DEFINITION}, 0 for the prevalence by definition; log loss and Brier score: means over all "
            "decisions.",
            100,
        ),
        f"Minerals per {noun}: {figures.labels_predicted:.2f} by the sum of the probabilities, "
        f"{figures.labels_true:.2f} labeled.",
    ]


def _decision_lines(result: Evaluation) -> list[str]:
    found = result.decisions
    by = "the thresholds above" if result.thresholds else "the `minerals` column"
    return [
        f"Decisions by {by}:",
        "per class  CP {:.4f}  CR {:.4f}  CF1 {:.4f}".format(*found.per_class) + f"  macro-F1 {found.macro_f1:.4f}",
        "overall    OP {:.4f}  OR {:.4f}  OF1 {:.4f}".format(*found.overall),
        "P is precision (right of those named), R is recall (found of those labeled), F1 is between the two. C: mean",
        "over the minerals, so rare ones count as much; O: all decisions together. macro-F1: mean of the minerals' F1.",
    ]


def _empty_lines(result: Evaluation, noun: str) -> list[str]:
    called = result.decisions.called
    empty = [result.labels[index] for index in result.mean_ap.empty if not called[index]]  # the others have a row
    if not empty:
        return []
    where = f"Neither labeled nor named in any {noun}, so not in the table"
    return ["", f"{where} ({len(empty)} of {len(result.labels)}): {', '.join(empty)}."]


def tuning_lines(tuning: Tuning, contract: ModelContract, model: Path, images: int, split: str | None) -> list[str]:
    """What tuning changed: the figures before and after on the same images, and what can be promised."""
    lines = ["", f"Wrote thresholds by {tuning.rule} into {model}: {_f1_changes(tuning)}."]
    for when, found in (("before", tuning.before), ("after", tuning.after)):
        means = f"macro-F1 {found.macro_f1:.4f}  CF1 {found.per_class.f1:.4f}  OF1 {found.overall.f1:.4f}"
        lines.append(f"{when:<7} {means}  OP {found.overall.precision:.4f}  OR {found.overall.recall:.4f}")
    if tuning.bound is not None:
        lines += _promise_lines(tuning, contract.labels, images)
    if split != "val":
        lines.append(
            "The thresholds were chosen on these images, so the figures after are optimistic; evaluate on others."
        )
    return lines


def _f1_changes(tuning: Tuning) -> str:
    """How many minerals gained and lost: `F1 rises for 3 minerals, falls for 1 and is unchanged for 32`."""
    difference = tuning.after.f1 - tuning.before.f1
    counts = {"rises": (difference > 0).sum(), "falls": (difference < 0).sum(), "is unchanged": (difference == 0).sum()}
    (first, count), *others = ((what, int(count)) for what, count in counts.items() if count)
    parts = [f"{first} for {counted(count, 'mineral')}", *(f"{what} for {count}" for what, count in others)]
    return "F1 " + " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def too_few(rule: Rule, images: int) -> str:
    """Say that no mineral gets what a rule promises."""
    are = f"{counted(images)} {'is' if images == 1 else 'are'}"
    return f"{are} too few to guarantee a {rule.goal} of {rule.value:g} for any mineral"


def _promise_lines(tuning: Tuning, labels: Sequence[str], images: int) -> list[str]:
    unknown = tuning.without_promise(labels)
    promised = len(labels) - len(unknown)
    if not promised:
        return [f"Warning: {too_few(tuning.rule, images)}; the thresholds rest on the calibration alone."]
    goal = f"{tuning.rule.goal} of at least {tuning.rule.value:g}"
    lines = [f"A {goal} is guaranteed with {CONFIDENCE:.0%} confidence for {promised} of {len(labels)} minerals."]
    if unknown:
        text = f"Too few images for a guarantee; only the calibration supports the threshold: {', '.join(unknown)}."
        lines += textwrap.wrap(text, 100)
    return lines
