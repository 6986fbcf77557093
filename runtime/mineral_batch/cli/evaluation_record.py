"""The figures of `mineral-batch evaluate` as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mineral_batch.cli.evaluation_text import Comparison, label_rows
from mineral_batch.evaluation.calibration import ECE_DEFINITION
from mineral_batch.evaluation.evaluate import Evaluation, Joined, Tuning
from mineral_batch.evaluation.levels import readings_of
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6, PrecisionRecallF1

if TYPE_CHECKING:
    from mineral_batch.evaluation.calibration import CalibrationFigures


def evaluation_record(
    joined: Joined, result: Evaluation, tuning: Tuning | None, compared: Comparison
) -> dict[str, Any]:
    """Every figure, ready for JSON: six significant digits, null where a figure is not defined."""
    record = {
        "predictions": str(compared.predictions),
        "labels": str(compared.labels),
        "split": compared.split,
        "level": compared.level,
        "specimen": compared.specimen,
        "images": joined.images or len(joined.truth),
        "specimens": len(joined.truth) if joined.noun == "specimen" else None,
        "varieties": [one._asdict() for one in readings_of(joined)],
        "predictions_without_labels": joined.unlabeled,
        "predictions_of_other_splits": joined.other_splits,
        "labeled_without_prediction": len(joined.missing),
        "mean_ap": {name: figure.mean for name, figure in result.ap.items()},
        "interval_95": result.interval,
        "interval_of": EQUATION_6,
        "bootstrap_resamples": compared.resamples,
        "definitions": dict(DEFINITIONS),
        "minerals": [_label_record(result, index, row) for index, row in enumerate(label_rows(result))],
        "without_positives": [result.labels[index] for index in result.mean_ap.empty],
        "calibration": _calibration_record(result.calibration),
        "decisions": "thresholds" if result.thresholds else "column minerals",
        **_decision_record(result.decisions),
    }
    if tuning:
        record["tuning"] = {
            "rule": str(tuning.rule),
            "bound": None if tuning.bound is None else dict(zip(result.labels, tuning.bound, strict=True)),
            "thresholds": dict(zip(result.labels, tuning.thresholds, strict=True)),
            "before": _decision_record(tuning.before),
            "after": _decision_record(tuning.after),
        }
    rounded: dict[str, Any] = six_digits(record)
    return rounded


def _calibration_record(figures: CalibrationFigures) -> dict[str, Any]:
    bins = figures.reliability
    return {
        "model": asdict(figures.scores),
        "always_the_prevalence": asdict(figures.baseline),
        "ece_definition": ECE_DEFINITION,
        "labels_per_image": {"predicted": figures.labels_predicted, "true": figures.labels_true},
        "bins": [
            {"decisions": count, "predicted": predicted, "observed": observed}
            for count, predicted, observed in zip(
                bins.decisions.tolist(), bins.predicted.tolist(), bins.observed.tolist(), strict=True
            )
        ],
    }


def _label_record(result: Evaluation, index: int, row: tuple[Any, ...]) -> dict[str, Any]:
    name, _, support, called, precision, recall, f1, threshold = row
    return {
        "mineral": name,
        "ap": {definition: figure.per_label[index].item() for definition, figure in result.ap.items()},
        "support": support,
        "called": called,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "threshold": threshold,
    }


def _decision_record(found: PrecisionRecallF1) -> dict[str, Any]:
    return {"per_class": found.per_class._asdict() | {"macro_f1": found.macro_f1}, "overall": found.overall._asdict()}


def six_digits(value: Any) -> Any:
    """The same structure with floats of six significant digits and None for NaN."""
    if isinstance(value, dict):
        return {key: six_digits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [six_digits(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
