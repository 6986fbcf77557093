"""Is the new layer better than what there was? Per label, with intervals, on photographs that it was not fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mineral_batch.evaluation.metrics import bootstrap_ap, mean_average_precision

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Below this many photographs of a label its AP is mostly chance.
FEW = 5
_RESAMPLES = 300


@dataclass(frozen=True)
class LabelComparison:
    """One label, or the mean of labels, before and after.

    Attributes:
        label: its name.
        images: photographs that show it.
        before: AP of the old model, None if it does not know the label.
        after: AP of the new one.
        low: lower end of the 95% interval of the difference, None without `before`.
        high: its upper end.
    """

    label: str
    images: int
    before: float | None
    after: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """The comparison in words."""
        if self.before is None:
            return "new label" if self.images >= FEW else "new label, too few to judge"
        if self.images < FEW:
            return "too few to judge"
        assert self.low is not None
        assert self.high is not None
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no clear difference"


def compare(
    labels: Sequence[str], y: Bools, before: Floats, known: Bools, after: Floats, seed: int
) -> tuple[list[LabelComparison], LabelComparison | None]:
    """Compare two tables of scores (N, L).

    Args:
        labels: L names.
        y: (N, L) truth.
        before: of the old model; anything for a label that it does not know.
        known: (L,) whether it knows the label.
        after: of the new model, out of fold.
        seed: of the bootstrap.

    Returns:
        One comparison per label that some photograph shows; and that of the mean over those that the old model knows,
        None if there are none.
    """
    shown = y.any(axis=0)
    both = shown & known
    first, second = (mean_average_precision(scores, y).per_label for scores in (before, after))
    differences = bootstrap_ap(after, y, _RESAMPLES, seed) - bootstrap_ap(before, y, _RESAMPLES, seed)  # (R, L)
    rows = [
        LabelComparison(
            labels[k],
            int(y[:, k].sum()),
            float(first[k]) if known[k] else None,
            float(second[k]),
            *(_interval(differences[:, k]) if known[k] else (None, None)),
        )
        for k in np.flatnonzero(shown).tolist()
    ]
    if not both.any():
        return rows, None
    with np.errstate(invalid="ignore"):
        of_mean = np.nanmean(differences[:, both], axis=1)
    images = int(y[:, both].any(axis=1).sum())
    mean = float(first[both].mean()), float(second[both].mean())
    return rows, LabelComparison(f"mean of {int(both.sum())} labels", images, *mean, *_interval(of_mean))


def _interval(differences: Floats) -> tuple[float, float]:
    """The 95% percentile interval."""
    finite = differences[np.isfinite(differences)]
    if not finite.size:
        return (-1.0, 1.0)
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def table(rows: Sequence[LabelComparison], mean: LabelComparison | None) -> list[str]:
    """Lay the comparison out in lines, the mean last."""
    lines = [f"{'label':<24}{'photos':>7}{'AP before':>11}{'AP after':>10}   difference (95% interval)"]
    for row in [*sorted(rows, key=lambda r: -r.images), *([mean] if mean else [])]:
        before = "-" if row.before is None else f"{row.before:.2f}"
        difference = ""
        if row.before is not None and row.low is not None and row.high is not None:
            difference = f"{row.after - row.before:+.2f} ({row.low:+.2f} to {row.high:+.2f})"
        lines.append(f"{row.label[:23]:<24}{row.images:>7}{before:>11}{row.after:>10.2f}   {difference} {row.verdict}")
    return lines
