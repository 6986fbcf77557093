"""Calibrate a checkpoint or an ONNX file on labeled images: fit a map, put it into the model, describe it.

The map becomes part of the last layer of a checkpoint (`fold_calibration`) or of an ONNX file's graph, so that every
export, engine and precision of the model has it. This module needs no torch; what a checkpoint needs is imported when
one is calibrated.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError
from mineral_batch.evaluation.thresholds import CONFIDENCE, expected_f1_thresholds, promise_thresholds
from mineral_batch.model.calibration import log_odds
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_batch.model.onnx_graph import load_graph
from mineral_train.calibration import fit_calibration
from mineral_train.training.onnx_values import graph_values
from mineral_train.training.staged import staged_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.thresholds import Rule
    from mineral_batch.model.calibration import Calibration
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Failure
    from mineral_train.data.manifest import Row
    from mineral_train.model.network import MineralNet
    from mineral_train.training.onnx_values import Progress


_DEFAULT_THRESHOLD = 0.5


def calibrate_checkpoint(
    folder: Path,
    logits: NDArray[np.float32],
    truth: NDArray[np.bool_],
    dataset: str,
    *,
    target: Path | None = None,
    rule: Rule | None = None,
) -> ModelContract:
    """Calibrate the checkpoint in a folder by what it answered.

    Args:
        folder: of the checkpoint.
        logits: (N, L) that it gave.
        truth: (N, L).
        dataset: what the images are, in words.
        target: where to write; None for `folder`.
        rule: for new thresholds; None keeps the decisions, and a threshold of 0.5 at 0.5.

    Raises:
        DataError: if the images cannot calibrate it (see `fit_calibration`), or it cannot be written.
    """
    from mineral_train.training.checkpoint import load_checkpoint, read_config, save_checkpoint

    model, contract = load_checkpoint(folder)
    calibration = fit_calibration(logits, truth, dataset=dataset)
    fold_calibration(model, calibration)
    calibrated = calibrated_contract(contract, calibration, logits, truth, rule)
    own = {"checkpoint", "model", "contract"}
    extra = {name: value for name, value in read_config(folder).items() if name not in own}
    save_checkpoint(target or folder, model, calibrated, **extra)
    return calibrated


def fold_calibration(model: MineralNet, calibration: Calibration) -> None:
    """Scale and shift a model's logits by its last layer: w_k becomes scale_k w_k, b_k becomes scale_k b_k + bias_k."""
    import torch

    # Of the flattened decoder states, or the head itself.
    head: Any = getattr(model.head, "linear", model.head)
    weight, bias = head.weight, head.bias
    with torch.no_grad():
        scale = torch.tensor(calibration.scale, dtype=torch.float64, device=weight.device)
        shift = torch.tensor(calibration.bias, dtype=torch.float64, device=weight.device)
        weight.copy_(scale[:, None] * weight)
        bias.copy_(scale * bias + shift)


def calibrate_onnx(
    path: Path,
    rows: Sequence[Row],
    truth: NDArray[np.bool_],
    dataset: str,
    *,
    target: Path | None = None,
    rule: Rule | None = None,
    progress: Progress | None = None,
) -> tuple[ModelContract, list[Failure]]:
    """Calibrate an ONNX file by what it answers on ONNX Runtime's CPU engine.

    Args:
        path: of the file.
        rows: the labeled images.
        truth: (N, L) of the rows.
        dataset: what the images are, in words.
        target: where to write; None for `path`.
        rule: as for `calibrate_checkpoint`.
        progress: wraps the results, of which it is told the number.

    Returns:
        The contract as written, and the images that could not be read and were left out.

    Raises:
        ContractError: if the file is not a model, or its graph cannot be calibrated.
        DataError: if no image can be read, or the images cannot calibrate it.
    """
    contract = read_contract(path)
    last, _ = load_graph(path).end(path)
    values, failures = graph_values(path, last.inputs[0], [row.path for row in rows], progress)
    answered = np.isfinite(values).all(axis=1)
    if answered.sum() < len(rows) - len(failures):
        raise DataError(f"{path} answers with numbers that are not finite: it cannot be calibrated")
    logits, truth = values[answered], truth[answered]
    calibration = fit_calibration(logits, truth, dataset=dataset)
    calibrated = calibrated_contract(contract, calibration, logits, truth, rule)
    # Graph and contract appear together: a graph that is calibrated under the old contract would answer wrongly.
    with staged_file(target or path) as staged:
        calibrate_graph(path, staged, calibration.scale, calibration.bias)
        write_contract(staged, calibrated)
    return calibrated, failures


def calibrated_contract(
    contract: ModelContract,
    calibration: Calibration,
    logits: NDArray[np.floating],
    truth: NDArray[np.bool_],
    rule: Rule | None,
) -> ModelContract:
    """The contract of the calibrated model.

    Args:
        contract: of the model before.
        calibration: fitted to it.
        logits: (N, L) before.
        truth: (N, L).
        rule: for new thresholds. Without one a threshold is moved with the probabilities, so that it makes the same
            decisions; those that were all left at 0.5 stay there: more probable than not.
    """
    described = replace(contract, calibration=calibration)
    if rule is None:
        return described.with_thresholds(_moved(contract.thresholds, calibration))
    scores = 1 / (1 + np.exp(-(np.array(calibration.scale) * logits + calibration.bias)))
    origin: dict[str, object] = {"rule": str(rule), "labels": calibration.dataset, "images": len(truth)}
    if rule.goal == "f1":
        thresholds = expected_f1_thresholds(scores, truth)
    else:
        thresholds, bound = promise_thresholds(scores, truth, rule)
        unknown = [label for label, value in zip(contract.labels, bound, strict=True) if math.isnan(value)]
        origin |= {"confidence": CONFIDENCE, "without_promise": unknown}
    provenance = {**contract.provenance, "thresholds": origin}
    return replace(described, thresholds=tuple(thresholds.tolist()), provenance=provenance)


def _moved(thresholds: Sequence[float], calibration: Calibration) -> list[float]:
    if all(threshold == _DEFAULT_THRESHOLD for threshold in thresholds):
        return list(thresholds)
    logits = log_odds(np.array(thresholds))
    moved = 1 / (1 + np.exp(-(np.array(calibration.scale) * logits + calibration.bias)))
    # Never and always stay what they are.
    return [old if old in (0.0, 1.0) else float(new) for old, new in zip(thresholds, moved, strict=True)]
