"""The charts of a report as PNG and SVG files for papers and slides, by matplotlib (extra `report`)."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mineral_batch.files import atomic_file
from mineral_batch.report import figures, land
from mineral_batch.report.charts import Bars, Heatmap, Panels, Places, Reliability
from mineral_batch.report.worldmap import View

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.report.charts import Chart
    from mineral_batch.results.read import Results

_COLORS = {"first": "#0b6b70", "second": "#b5651d", "third": "#6b4fa0"}
_FAINT, _MARK, _LAND = "#9fbfc1", "#ab1f17", "#e4e1d8"
_DPI = 200
_ACROSS = 6  # small panels in a row
# Text stays text in the SVG, a `$` in a label is not a formula, and the same figures give the same file.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mineral-batch",
    "text.parse_math": False,
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_files(results: Results, accuracy: Accuracy | None, folder: Path) -> list[Path]:
    """The files that `write_plots` writes for the same arguments."""
    charts = figures.all_charts(results, accuracy)
    return [folder / f"{chart.name}.{suffix}" for chart in charts for suffix in ("png", "svg")]


def write_plots(results: Results, accuracy: Accuracy | None, folder: Path) -> list[Path]:
    """Write every chart for which there are data, each as NAME.png (200 dpi) and NAME.svg.

    Args:
        results: of a run.
        accuracy: against labels; None leaves out the charts that need labels.
        folder: created if it does not exist.

    Returns:
        The files.

    Raises:
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for chart in figures.all_charts(results, accuracy):
            figure = draw(chart)
            FigureCanvasAgg(figure)
            figure.draw_without_rendering()  # laid out once, not once per format
            figure.set_layout_engine("none")
            for suffix, options in (("png", {"dpi": _DPI}), ("svg", {"metadata": {"Date": None}})):
                path = folder / f"{chart.name}.{suffix}"
                with atomic_file(path) as file:
                    figure.savefig(file, format=suffix, **options)
                written.append(path)
    return written


@singledispatch
def draw(chart: Chart) -> Figure:
    """Draw a chart."""
    raise TypeError(f"cannot draw a {type(chart).__name__}")


@draw.register
def _(chart: Bars) -> Figure:
    figure, axes = _figure(max(3.0, 0.24 * len(chart.rows) + 1), 3)
    names = _printable([row.name for row in chart.rows])
    colors = [_FAINT if row.is_faint else _COLORS["first"] for row in chart.rows]
    bars = axes.bar(range(len(names)), [row.value for row in chart.rows], color=colors)
    axes.set_xticks(range(len(names)), names, rotation=90)
    # The number that says how much a bar can be trusted: the count.
    count = "labeled photographs" if "labeled photographs" in chart.columns else "photographs"
    cell = chart.columns.index(count) - 1
    axes.bar_label(bars, [row.cells[cell] for row in chart.rows], fontsize=6)
    axes.set_ylabel(chart.columns[1])
    if cell:
        axes.set_xlabel(f"above the bars: {count}")
    if chart.full:
        axes.set_ylim(0, 1.06 * chart.full)
    if chart.mean:
        value, name = chart.mean
        axes.axhline(value, color=_MARK, linestyle="--", linewidth=1, label=name)
        axes.legend(loc="upper right")
    return figure


@draw.register
def _(chart: Heatmap) -> Figure:
    width, height = (0.2 * len(names) + 1.5 for names in (chart.columns, chart.rows))
    figure, axes = _figure(width, height)
    axes.imshow(chart.scale, cmap="Greens", vmin=0, vmax=1)
    axes.set_xticks(range(len(chart.columns)), _printable(chart.columns), rotation=90)
    axes.set_yticks(range(len(chart.rows)), _printable(chart.rows))
    for i, j in np.argwhere(chart.counts > 0).tolist():
        color = "white" if chart.scale[i, j] > 0.6 else "black"
        axes.text(j, i, str(chart.counts[i, j]), ha="center", va="center", fontsize=5, color=color)
    axes.set(xlabel=chart.across, ylabel=chart.down)
    return figure


@draw.register
def _(chart: Panels) -> Figure:
    count = len(chart.panels)
    down = max(1, math.ceil(count / _ACROSS))
    figure = Figure(figsize=(1.35 * _ACROSS, 1.55 * down + 0.4), layout="constrained")
    grid = figure.subplots(down, _ACROSS, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.set_axis_off()
    for panel, axes in zip(chart.panels, grid, strict=False):
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1), box_aspect=1)
        for line in panel.lines:
            axes.plot(line.x, line.y, color=_COLORS[line.style], linewidth=1.2, label=line.label)
        if panel.mark is not None:
            axes.axvline(panel.mark, color=_MARK, linestyle="--", linewidth=0.8, label=chart.mark)
        axes.set_title(f"{_printable([panel.title])[0]}\n{panel.note.replace(', ', chr(10))}", fontsize=6)
    if chart.panels and len(chart.panels[0].lines) > 1:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.supxlabel(chart.across)
    if chart.up:
        figure.supylabel(chart.up)
    return figure


@draw.register
def _(chart: Reliability) -> Figure:
    figure = Figure(figsize=(3.4, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="gray", linestyle=":")
    above.plot(chart.predicted, chart.observed, color=_COLORS["first"], marker="o", markersize=4)
    above.set(ylabel="share that is true", xlim=(0, 1), ylim=(0, 1), box_aspect=1)
    above.set_title(f"expected calibration error {chart.error:.3f}")
    bins = len(chart.decisions)
    bars = below.bar((np.arange(bins) + 0.5) / bins, chart.decisions, width=0.9 / bins, color=_COLORS["first"])
    below.bar_label(bars, [f"{count:,}" for count in chart.decisions.tolist()], fontsize=5)
    below.set(xlabel="probability", ylabel="decisions", yscale="symlog")
    below.margins(y=0.25)
    return figure


@draw.register
def _(chart: Places) -> Figure:
    view, (figure, axes) = View.around(chart.points), _figure(6, 4)
    for ring in land.rings():
        axes.fill(*ring.T, color=_LAND, linewidth=0, zorder=0)
    north, east = chart.points.T
    axes.scatter(east, north, s=12, color=_COLORS["second"], alpha=0.7, linewidths=0, zorder=2)
    axes.set(xlim=(view.west, view.east), ylim=(view.south, view.north))
    axes.set(xlabel="longitude, degrees east", ylabel="latitude, degrees north")
    axes.set_aspect(1 / view.squeeze)
    axes.grid(linewidth=0.4)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    """Make a figure with one plot; inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _printable(names: Sequence[str]) -> list[str]:
    """Replace the bytes of names that are not UTF-8."""
    return [name.encode("utf-8", "replace").decode() for name in names]
