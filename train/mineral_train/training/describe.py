"""The contract of a trained model: what it is, how it was made, how good it was on the validation split."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mineral_batch.evaluation.metrics import MeanAP, mean_average_precision
from mineral_batch.evaluation.thresholds import tune_thresholds
from mineral_batch.model.contract import InputSpec, Measured, ModelContract
from mineral_train.model.backbones import import_timm

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mineral_train.training.config import TrainConfig


def make_contract(
    config: TrainConfig,
    spec: InputSpec,
    scores: NDArray[np.float32],
    truth: NDArray[np.bool_],
    *,
    name: str,
    dataset: str,
    facts: dict[str, Any],
) -> ModelContract:
    """Make the contract of the weights that gave `scores`.

    Args:
        config: the recipe.
        spec: the model's input.
        scores: (N, L) probabilities on the validation split.
        truth: (N, L).
        name: of the model.
        dataset: the validation images, in words.
        facts: further provenance.
    """
    tuned = config.tune_thresholds
    return ModelContract(
        labels=config.model.labels,
        thresholds=tuple(tune_thresholds(scores, truth).tolist()) if tuned else (0.5,) * truth.shape[1],
        input=spec,
        name=name,
        provenance={"recipe": _recipe(config), **facts, **_circumstances()},
        measured=measure(scores, truth, config.model.labels, dataset),
    )


def measure(scores: NDArray[np.float32], truth: NDArray[np.bool_], labels: tuple[str, ...], dataset: str) -> Measured:
    """Measure mean and per-label AP by equation 6, as a contract holds them.

    Args:
        scores: (N, L).
        truth: (N, L).
        labels: L names.
        dataset: what it was measured on, in words.
    """
    figure: MeanAP = mean_average_precision(scores, truth)
    ap = {
        label: None if math.isnan(value) else float(value)
        for label, value in zip(labels, figure.per_label, strict=True)
    }
    support = {label: int(count) for label, count in zip(labels, figure.support, strict=True)}
    return Measured(figure.mean, figure.definition, dataset, len(scores), ap, support)


def _recipe(config: TrainConfig) -> dict[str, Any]:
    """The recipe without the labels, which the contract has, and without folders, which are private."""
    record = config.to_json()
    record |= {name: Path(record[name]).name for name in ("pretrained", "init", "soft_targets")}
    record["model"] = {name: value for name, value in record["model"].items() if name != "labels"}
    return record


def _circumstances() -> dict[str, Any]:
    return {
        "versions": {"torch": torch.__version__, "timm": import_timm().__version__},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
