"""The first lines of a run: which model and engine answer, and what to keep in mind about them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mineral_batch.cuda.probe import first_gpu
from mineral_batch.model.calibration import uncalibrated
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.starter import STARTER_NAME, starter_card
from mineral_batch.predictor import Predictor


def describe_predictor(predictor: Predictor, *, quiet: bool) -> list[str]:
    """Return the lines for an engine on this machine; only warnings if `quiet`."""
    caveats = [] if predictor.contract.is_calibrated else [describe_uncalibrated(predictor.model)]
    if quiet:
        return caveats
    lines = [f"{describe_model(predictor.contract)}, {predictor.backend} on {predictor.device}"]
    lines += describe_passed_over(predictor.skipped, has_gpu=first_gpu() is not None)
    # Also of a copy with other thresholds.
    lines += [describe_starter(predictor.contract)] if predictor.contract.name == STARTER_NAME else []
    return lines + caveats


def describe_model(contract: ModelContract) -> str:
    """`name: 36 minerals`."""
    return f"{contract.name}: {len(contract.labels)} minerals"


def describe_passed_over(skipped: Mapping[str, str], *, has_gpu: bool) -> list[str]:
    """Return why faster engines were not chosen."""
    if skipped and not has_gpu:
        return ["No NVIDIA GPU found; using the CPU."]
    return [f"  not {name}: {reason}" for name, reason in skipped.items()]


def describe_starter(contract: ModelContract) -> str:
    """Return what the starter model is for."""
    measured = contract.measured
    score = f" (test mAP {measured.mean_ap:.2f} on {measured.images} photos)" if measured else ""
    return (
        f"This is the small starter model{score}: for a first look, not for decisions. "
        f"What it can and cannot do: {starter_card()}"
    )


def describe_uncalibrated(model: str | Path) -> str:
    """Return the warning about probabilities that are not calibrated."""
    return f"Warning: {uncalibrated(Path(model))}"
