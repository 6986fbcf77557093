"""Figures apart for each manifest of a run that has several: one set can fall while the mean rises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from mineral_batch.evaluation.metrics import EQUATION_6, mean_average_precision

if TYPE_CHECKING:
    from numpy.typing import NDArray


class SetFigures(TypedDict):
    """How good a model is on one manifest's validation split: images, labels that occur, mAP by equation 6."""

    images: int
    labels: int
    mean_ap: float


def set_names(paths: Sequence[Path]) -> list[str]:
    """Name manifests by as much of the end of their paths as makes them distinct."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def measure_sets(scores: NDArray[np.float32], truth: NDArray[np.bool_], sets: Sequence[str]) -> dict[str, SetFigures]:
    """Measure each set; empty for a single one.

    Args:
        scores: (N, L) probabilities on the validation split.
        truth: (N, L).
        sets: N, of which manifest an image is.
    """
    names = list(dict.fromkeys(sets))
    if len(names) < 2:
        return {}
    of = np.array(sets)
    figures = {}
    for name in names:
        mine = of == name
        found = mean_average_precision(scores[mine], truth[mine])
        labels = int((found.support > 0).sum())
        figures[name] = SetFigures(images=int(mine.sum()), labels=labels, mean_ap=found.mean if labels else 0.0)
    return figures


def sets_in_words(figures: Mapping[str, SetFigures]) -> Iterator[str]:
    """One line for each set."""
    for name, found in figures.items():
        figure = f"mAP {100 * found['mean_ap']:.2f}% ({EQUATION_6})" if found["labels"] else "no label occurs"
        yield f"  {name}: {figure}, {found['images']:,} images, {found['labels']} labels"
