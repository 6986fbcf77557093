"""Do two forms of a model give the same output, and if not, is the difference within the budget?"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mineral_batch.errors import MineralError
from mineral_batch.evaluation.calibration import calibration_drift, probability_scores
from mineral_batch.evaluation.metrics import MeanAP, mean_average_precision
from mineral_batch.evaluation.thresholds import binarize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools
    from mineral_batch.model.calibration import ProbabilityScores
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.samples import Samples

# Batches of several sizes, so that a graph that fixed its batch axis is caught; what is left is one more batch.
_BATCHES = (1, 4, 3)


class ParityError(MineralError):
    """Two forms of a model that should agree do not."""


class Model(Protocol):
    """Anything that maps (N, H, W, 3) uint8 images to (N, L) float32 probabilities."""

    def __call__(self, pixels: Pixels, /) -> Probabilities:
        """Predict one batch."""
        ...


@dataclass(frozen=True)
class Parity:
    """How far the probabilities of two models lie apart on the same images.

    Attributes:
        largest: of all absolute differences of a probability; NaN if one is not a number.
        mean: absolute difference.
        images: how many were compared.
        what: the images in words.
        labels: L names.
        flips: decisions (a mineral in an image, at its threshold) that differ.
        changed: images with at least one of them.
        ap: mAP of both models by equation 6; None without ground truth.
        scores: calibration error, log loss and Brier score of both; None without ground truth, or if the first is not
            calibrated.
        drift: how much higher the second's calibration error is, in the first's bins; None where `scores` is.
        are_synthetic: the images, so that `changed` is not judged.
    """

    largest: float
    mean: float
    images: int
    what: str
    labels: tuple[str, ...] = ()
    flips: int = 0
    changed: int = 0
    ap: tuple[MeanAP, MeanAP] | None = None
    scores: tuple[ProbabilityScores, ProbabilityScores] | None = None
    drift: float | None = None
    are_synthetic: bool = False

    def __str__(self) -> str:
        lost = "" if self.lost is None else f"{self.lost:.2f} points of mAP lost, "
        return (
            f"{lost}largest difference of a probability {self.largest:.2g}, mean {self.mean:.2g}, "
            f"the minerals named differ in {self.changed} of {self.images} {self.what}"
        )

    @property
    def decisions(self) -> int:
        """Number of decisions compared: images times labels."""
        return self.images * len(self.labels)

    @property
    def lost(self) -> float | None:
        """Points of mAP that the second model lies below the first; None if no image has a label."""
        if self.ap is None or np.isnan(self.ap[0].mean):
            return None
        return 100 * (self.ap[0].mean - self.ap[1].mean)

    def beyond(self, budget: Budget) -> tuple[str, ...]:
        """Return what exceeds the budget, in words; empty if all is within."""
        if not np.isfinite(self.largest):
            return ("a probability is not a number",)
        if self.lost is not None:
            figures = [("mAP lost, in points,", self.lost, budget.points)]
            if self.drift is not None:
                figures.append(("rise of the calibration error", self.drift, budget.ece))
        else:
            figures = [
                ("largest difference of a probability", self.largest, budget.largest),
                ("mean difference", self.mean, budget.mean),
            ]
        reasons = [f"{name} {value:.2g} exceeds {most:g}" for name, value, most in figures if value > most]
        changed = self.changed / self.images
        if self.lost is None and not self.are_synthetic and changed > budget.changed:
            most = _percent(budget.changed)
            reasons.append(f"the minerals named differ in {_percent(changed)} of the images (the limit is {most})")
        return tuple(reasons)

    def require(self, budget: Budget) -> None:
        """Check the budget.

        Raises:
            ParityError: if it is exceeded.
        """
        reasons = self.beyond(budget)
        if reasons:
            raise ParityError(
                f"nothing was written: {'; '.join(reasons)}, over {self.images} {self.what} "
                f"(budget of {budget.name}); add --force to write it anyway"
            )

    def record(self) -> dict[str, Any]:
        """Return the figures for JSON; null where one is not defined."""
        record: dict[str, Any] = {
            "pictures": self.images,
            "what": self.what,
            "largest": _number(self.largest),
            "mean": _number(self.mean),
            "decisions": self.decisions,
            "flips": self.flips,
            "changed_pictures": self.changed,
        }
        if self.scores is not None:
            record["calibration"] = [asdict(one) for one in self.scores]
            record["calibration_drift"] = self.drift
        if self.ap is not None:
            record["definition"] = self.ap[0].definition
            record["mean_ap"] = [_number(one.mean) for one in self.ap]
            record["points_lost"] = None if self.lost is None else _number(self.lost)
            record["minerals"] = [
                {"mineral": name, "support": support, "ap": [_number(one), _number(other)]}
                for name, support, one, other in self.minerals()
            ]
        return record

    def minerals(self) -> list[tuple[str, int, float, float]]:
        """Return name, support and both APs of every mineral with a positive image; the largest loss first."""
        if self.ap is None:
            return []
        one, other = self.ap
        rows = zip(self.labels, one.support.tolist(), one.per_label.tolist(), other.per_label.tolist(), strict=True)
        return sorted((row for row in rows if row[1]), key=lambda row: row[3] - row[2])


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


def compare(one: Model, other: Model, samples: Samples, contract: ModelContract) -> Parity:
    """Predict the same images with both models, in batches of different sizes, and compare the probabilities.

    Args:
        one: the reference.
        other: what is compared with it.
        samples: at least one image.
        contract: the reference's labels and thresholds.
    """
    answers: list[tuple[Probabilities, Probabilities]] = []
    truths: list[Bools] = []
    for pixels, truth in samples.batches:
        # Copied, because an engine may overwrite its output in the next call.
        answers += [(one(batch).copy(), other(batch).copy()) for batch in _in_batches(pixels)]
        truths += [] if truth is None else [truth]
    first, second = (np.concatenate(side).astype(np.float64) for side in zip(*answers, strict=True))
    truth = np.concatenate(truths) if truths else None
    parity = compare_probabilities(first, second, truth, samples.what, contract)
    return replace(parity, are_synthetic=samples.are_synthetic)


def compare_probabilities(
    one: NDArray[np.float64], other: NDArray[np.float64], truth: Bools | None, what: str, contract: ModelContract
) -> Parity:
    """Compare (N, L) probabilities of the same images.

    Args:
        one: the reference's.
        other: those that are compared with it.
        truth: (N, L) ground truth, if it is known.
        what: the images in words.
        contract: the reference's labels and thresholds.
    """
    difference = np.abs(one - other)
    thresholds = np.array(contract.thresholds)
    flips = binarize(one, thresholds) != binarize(other, thresholds)
    ap = scores = drift = None
    if truth is not None and np.isfinite(difference).all():
        ap = mean_average_precision(one, truth), mean_average_precision(other, truth)
        if contract.is_calibrated:
            scores = probability_scores(one, truth), probability_scores(other, truth)
            drift = calibration_drift(one, other, truth)
    return Parity(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        images=len(one),
        what=what,
        labels=contract.labels,
        flips=int(flips.sum()),
        changed=int(flips.any(axis=1).sum()),
        ap=ap,
        scores=scores,
        drift=drift,
    )


def _in_batches(pixels: Pixels) -> list[Pixels]:
    return [batch for batch in np.split(pixels, np.cumsum(_BATCHES)) if len(batch)]
