"""The figures of a report as PNG and SVG, for papers and slides, by matplotlib (extra `report`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mineral_batch.files import atomic_file
from mineral_batch.report import figures
from mineral_batch.report.markup import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.results.read import Results

_FIRST, _SECOND, _THIRD, _MARK = "#0b6b70", "#b5651d", "#6b4fa0", "#ab1f17"
_DPI = 200
_ACROSS = 6  # small panels in a row
# Text stays text in the SVG, a `$` in a label is no formula, and the same figures give the same file.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mineral-batch",
    "text.parse_math": False,
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def write_plots(results: Results, accuracy: Accuracy | None, folder: Path) -> list[Path]:
    """Write every figure that there are data for, each as NAME.png (200 dpi) and NAME.svg.

    Args:
        results: of a run.
        accuracy: against labels; None leaves out what needs them.
        folder: made if absent.

    Returns:
        The files.

    Raises:
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for name, figure in _figures(results, accuracy):
            FigureCanvasAgg(figure)
            # Laid out once, not for each format.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for suffix, options in (("png", {"dpi": _DPI}), ("svg", {"metadata": {"Date": None}})):
                path = folder / f"{name}.{suffix}"
                with atomic_file(path) as file:
                    figure.savefig(file, format=suffix, **options)
                written.append(path)
    return written


def _figures(results: Results, accuracy: Accuracy | None) -> Iterator[tuple[str, Figure]]:
    yield "counts", _counts(results)
    together = figures.co_occurrence(results)
    if together.rows:
        yield "co-occurrence", _matrix(together, "called together", "")
    if results.has_places:
        yield "places", _places(results.places[np.isfinite(results.places).all(axis=1)])
    if accuracy:
        yield "average-precision", _average_precision(accuracy)
        yield "precision-recall", _precision_recall(accuracy)
        yield "thresholds", _thresholds(results, accuracy)
        yield "confusion", _matrix(figures.confusions(accuracy), "called instead, or rightly", "labelled")
        yield "calibration", _calibration(accuracy)


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """A figure of so many inches with one plot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _counts(results: Results) -> Figure:
    rows = [row for row in figures.counts(results) if row.pictures]
    figure, axes = _figure(max(3.0, 0.22 * len(rows) + 1), 3)
    names = [printable(row.mineral) for row in rows]
    drawn = axes.bar(names, [row.pictures for row in rows], color=_FIRST)
    axes.bar_label(drawn, fontsize=6)
    axes.tick_params(axis="x", labelrotation=90)
    axes.set_ylabel("photographs")
    return figure


def _average_precision(accuracy: Accuracy) -> Figure:
    """Figure 5 of Wu et al. 2022, with the support, without which the bars cannot be judged."""
    order = figures.by_ap(accuracy)
    figure, axes = _figure(max(3.0, 0.24 * len(order) + 1), 3)
    found = accuracy.evaluation.mean_ap
    names = [f"{printable(accuracy.evaluation.labels[index])} ({found.support[index]})" for index in order]
    axes.bar(names, found.per_label[order], color=_FIRST)
    axes.axhline(found.mean, color=_MARK, linestyle="--", linewidth=1, label=f"mAP {found.mean:.3f}")
    axes.tick_params(axis="x", labelrotation=90)
    axes.set(ylabel="average precision", ylim=(0, 1), xlabel="mineral (photographs that show it)")
    axes.legend(loc="upper right")
    return figure


def _panels(count: int) -> tuple[Figure, list[Any]]:
    """Small plots over the unit square, sharing their axes."""
    down = max(1, math.ceil(count / _ACROSS))
    figure = Figure(figsize=(1.35 * _ACROSS, 1.45 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, _ACROSS, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    for axes in grid[:count]:
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), box_aspect=1)
    return figure, grid[:count]


def _precision_recall(accuracy: Accuracy) -> Figure:
    order = figures.by_ap(accuracy)
    figure, grid = _panels(len(order))
    for index, axes in zip(order, grid, strict=True):
        axes.plot(*figures.steps(accuracy.curves[index]), color=_FIRST, linewidth=1.2)
        ap = accuracy.evaluation.mean_ap.per_label[index]
        axes.set_title(f"{printable(accuracy.evaluation.labels[index])}\nAP {ap:.2f}", fontsize=7)
    figure.supxlabel("recall")
    figure.supylabel("precision")
    return figure


def _thresholds(results: Results, accuracy: Accuracy) -> Figure:
    order = figures.by_ap(accuracy)
    figure, grid = _panels(len(order))
    for index, axes in zip(order, grid, strict=True):
        curve = accuracy.thresholds[index]
        axes.plot(curve.threshold, curve.precision, color=_SECOND, linewidth=0.8, label="precision")
        axes.plot(curve.threshold, curve.recall, color=_THIRD, linewidth=0.8, label="recall")
        axes.plot(curve.threshold, curve.f1, color=_FIRST, linewidth=1.2, label="F1")
        if results.knows_thresholds:
            axes.axvline(results.thresholds[index], color=_MARK, linestyle="--", linewidth=0.8, label="model")
        axes.set_title(printable(accuracy.evaluation.labels[index]), fontsize=7)
    if grid:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel("threshold")
    return figure


def _matrix(matrix: figures.Matrix, across: str, down: str) -> Figure:
    width, height = (0.2 * len(names) + 1.5 for names in (matrix.columns, matrix.rows))
    figure, axes = _figure(width, height)
    axes.imshow(matrix.scale, cmap="Greens", vmin=0, vmax=1)
    axes.set_xticks(range(len(matrix.columns)), _printable(matrix.columns), rotation=90)
    axes.set_yticks(range(len(matrix.rows)), _printable(matrix.rows))
    for i, j in np.argwhere(matrix.counts > 0).tolist():
        colour = "white" if matrix.scale[i, j] > 0.6 else "black"
        axes.text(j, i, str(matrix.counts[i, j]), ha="center", va="center", fontsize=5, color=colour)
    axes.set(xlabel=across, ylabel=down)
    return figure


def _printable(names: Sequence[str]) -> list[str]:
    return [printable(name) for name in names]


def _calibration(accuracy: Accuracy) -> Figure:
    found = accuracy.evaluation.calibration.reliability
    figure, axes = _figure(3.4, 3.4)
    axes.plot((0, 1), (0, 1), color="grey", linestyle=":")
    axes.plot(found.predicted, found.observed, color=_FIRST, marker="o", markersize=4)
    axes.set(xlabel="mean probability", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1), box_aspect=1)
    axes.set_title(f"expected calibration error {found.error:.3f}")
    return figure


def _places(places: NDArray[np.float64]) -> Figure:
    figure, axes = _figure(6, 4)
    axes.scatter(places[:, 1], places[:, 0], s=12, color=_SECOND, alpha=0.6, linewidths=0)
    axes.set(xlabel="longitude, degrees east", ylabel="latitude, degrees north")
    axes.set_aspect(1 / max(0.1, math.cos(math.radians(float(places[:, 0].mean())))), adjustable="datalim")
    axes.grid(linewidth=0.4)
    return figure
