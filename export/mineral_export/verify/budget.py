"""How far the output of one form of a model may lie from another's, by precision."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Largest difference between a checkpoint's probability and an exported file's. Float32 summed in another order moves
#: probabilities by 7e-6 (a small ViT) to 2e-4 (the paper's model, random weights).
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Budget:
    """The loss that is allowed: with ground truth `points` and `ece` decide, without it the other three.

    Attributes:
        name: the precision that the budget is for.
        points: loss of mAP, in points of 100.
        largest: difference of one probability.
        mean: mean difference over all probabilities.
        changed: share of the images whose set of detected minerals changes.
        ece: rise of the expected calibration error of a calibrated model, 0..1; see `calibration_drift`.
    """

    name: str
    points: float
    largest: float
    mean: float
    changed: float
    ece: float

    def __str__(self) -> str:
        return (
            f"{self.name}: with labels, at most {self.points:g} points of mAP lost and, calibrated, "
            f"{self.ece:g} more calibration error; without, a largest difference of "
            f"{self.largest:g}, a mean of {self.mean:g}, and other minerals "
            f"named in {100 * self.changed:g}% of the photographs"
        )


#: By precision, the most exact first.
BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("float32", points=0.01, largest=TOLERANCE, mean=TOLERANCE, changed=0.01, ece=0.0005),
        Budget("TF32 allowed", points=0.1, largest=0.02, mean=0.001, changed=0.02, ece=0.002),  # its mantissa is FP16's
        Budget("float16", points=0.1, largest=0.02, mean=0.001, changed=0.02, ece=0.002),
        Budget("bfloat16", points=0.1, largest=0.1, mean=0.005, changed=0.05, ece=0.005),
        Budget("float8", points=0.5, largest=0.3, mean=0.015, changed=0.15, ece=0.01),
        Budget("int8", points=0.5, largest=0.3, mean=0.015, changed=0.15, ece=0.01),
    )
}


def budget_for(precision: str, points: float | None = None) -> Budget:
    """Return the precision's budget, with another limit for the loss of mAP if `points` is given."""
    return BUDGETS[precision] if points is None else replace(BUDGETS[precision], points=points)


def least_exact(precisions: Iterable[str]) -> str:
    """Return the least exact of the names that have a budget; `float32` if none has one."""
    order = list(BUDGETS)
    return max((name for name in precisions if name in order), key=order.index, default="float32")
