"""What a reader must know about the model before looking at its results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mineral_batch.model.starter import STARTER_NAME, STARTER_WARNING


def of_model(manifest: Mapping[str, Any]) -> list[str]:
    """List the warnings about the model of a run.

    Args:
        manifest: run.json; empty for a run that was stopped.
    """
    model = manifest.get("model")
    if not isinstance(model, Mapping):
        return []
    lines = [STARTER_WARNING] if model.get("name") == STARTER_NAME else []
    lines += _accuracy(model)
    # Runs of earlier versions do not say.
    if "calibration" in model and model["calibration"] is None:
        lines.append(
            "The probabilities are not calibrated: they rank photographs, but 70% does not mean right seven times "
            "in ten."
        )
    return [" ".join(lines)] if lines else []


def _accuracy(model: Mapping[str, Any]) -> list[str]:
    if "measured" not in model:
        return []
    measured = model["measured"]
    if not isinstance(measured, Mapping):
        return ["The accuracy of this model was never measured."]
    dataset = f" of {measured['dataset']}" if measured.get("dataset") else ""
    where = f"{measured['images']:,} photographs{dataset}"
    return [f"Mean average precision {measured['mean_ap']:.2f} (1 is perfect) on {where}."]
