"""What a contract says about calibration: the map, what it was fitted on, and how good it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import ContractError, plain_reason
from mineral_batch.model.checks import floats, is_int, require

# Beside 0 and 1, which no images can show to be exact.
_LEAST = 1e-9


@dataclass(frozen=True)
class ProbabilityScores:
    """How good probabilities are, over decisions (N images times L labels); of each figure, lower is better.

    Attributes:
        ece: expected calibration error, 10 equal-width bins over all decisions (Guo et al. 2017).
        log_loss: mean of -log of the probability given to the truth, natural logarithm.
        brier: mean of (probability - truth)^2 (Brier 1950).
    """

    ece: float
    log_loss: float
    brier: float


@dataclass(frozen=True)
class Calibration:
    """How a model's probabilities were calibrated: P(label k | logit z) = sigmoid(scale_k z + bias_k).

    The map is part of the model: of the graph of an ONNX file, of the head of a checkpoint. What is here describes it.

    Attributes:
        method: its name and source.
        dataset: what it was fitted on, in words; images that the weights were not trained on.
        images: N, how many.
        date: ISO 8601.
        scale: (L,), all above 0: no ranking changes, so no AP does.
        bias: (L,).
        positives: (L,), images that show the label. A label with none has the map that all labels share, nearly.
        before: of the probabilities without the map.
        after: of those with it, cross-validated on the same images.
    """

    method: str
    dataset: str
    images: int
    date: str
    scale: tuple[float, ...]
    bias: tuple[float, ...]
    positives: tuple[int, ...]
    before: ProbabilityScores
    after: ProbabilityScores

    def __post_init__(self) -> None:
        require(is_int(self.images) and self.images > 0, f"calibration.images must be above 0, got {self.images!r}")
        require(isinstance(self.scale, (list, tuple)), f"calibration.scale must be numbers, got {self.scale!r}")
        for name in ("scale", "bias", "positives"):
            values = floats(f"calibration.{name}", getattr(self, name), len(self.scale))
            object.__setattr__(self, name, tuple(map(int, values)) if name == "positives" else values)
        require(all(value > 0 for value in self.scale), "calibration.scale must be above 0")
        counts_fit = all(0 <= count <= self.images for count in self.positives)
        require(counts_fit, f"calibration.positives must be 0 to {self.images}, got {list(self.positives)}")

    @property
    def prevalence(self) -> tuple[float, ...]:
        """(L,) share of the images that show the label."""
        return tuple(count / self.images for count in self.positives)

    @classmethod
    def from_record(cls, record: Any) -> Calibration:
        """Read it from JSON.

        Raises:
            ContractError: naming what is missing or wrong.
        """
        require(isinstance(record, Mapping), f"calibration must be a JSON object, got {record!r}")
        try:
            before, after = (ProbabilityScores(**record[name]) for name in ("before", "after"))
            return cls(**{**record, "before": before, "after": after})
        except (TypeError, KeyError) as error:
            raise ContractError(f"calibration is incomplete or of the wrong type: {plain_reason(error)}") from None


def calibrate_command(model: object) -> str:
    """The command that calibrates a model file or a checkpoint; a built engine is built again from the ONNX file."""
    if str(model).endswith((".plan", ".engine")):
        return "mineral-train calibrate MODEL.onnx MANIFEST.csv --split val, then mineral-export trt MODEL.onnx"
    return f"mineral-train calibrate {model} MANIFEST.csv --split val"


def uncalibrated(model: object) -> str:
    """What a user of an uncalibrated model must know, with the command that helps."""
    return (
        f"{model} is not calibrated: its probabilities rank images, but 0.8 does not mean right in eight of ten. "
        f"Calibrate it once, with labeled images that it was not trained on: {calibrate_command(model)}"
    )


def log_odds(probability: NDArray[np.floating], least: float = _LEAST) -> NDArray[np.float64]:
    """Return log(p / (1 - p)), finite also at 0 and 1: p is taken as at least `least`, and as far from 1."""
    p = np.clip(np.asarray(probability, np.float64), least, 1 - least)
    odds: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return odds
