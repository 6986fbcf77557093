"""Charts as shapes for the SVG in the page's templates: where each rectangle, line and word goes, in pixels.

Colors and fonts come from the page's style sheet by class, so that charts follow light, dark and print.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.report.charts import Floats, Heatmap, Line, Panel, Reliability

#: Largest number of points of a line: more cannot be seen.
_CURVE_POINTS = 120


class Text(NamedTuple):
    """A word at x, y; `anchor`: start, middle or end."""

    x: float
    y: float
    text: str
    anchor: str = "start"


class Rectangle(NamedTuple):
    """A rectangle; `title` is shown when the pointer is over it."""

    x: float
    y: float
    width: float
    height: float
    style: str = ""
    opacity: float = 1.0
    title: str = ""
    text: str = ""


class Box(NamedTuple):
    """A square plot area in a drawing."""

    left: float
    top: float
    size: float

    def x(self, value: float) -> float:
        """Convert 0..1 to pixels across."""
        return self.left + value * self.size

    def y(self, value: float) -> float:
        """Convert 0..1 to pixels down."""
        return self.top + (1 - value) * self.size


class HeatmapShapes(NamedTuple):
    """A heatmap; `columns` are written upwards from their point."""

    width: int
    height: int
    grid: str
    rows: list[Text]
    columns: list[Text]
    cells: list[Rectangle]


class PanelShapes(NamedTuple):
    """A panel: its box, ticks, and the path of each line with its style."""

    width: float
    height: float
    box: Box
    grid: str
    ticks: list[Text]
    paths: list[tuple[str, str]]
    mark: str


class ReliabilityShapes(NamedTuple):
    """A reliability diagram: a panel with dots, and below it a bar per bin."""

    width: float
    height: float
    box: Box
    grid: str
    ticks: list[Text]
    ideal: str
    line: str
    dots: list[Rectangle]
    bars: list[Rectangle]


_CELL = 22


def heatmap(chart: Heatmap) -> HeatmapShapes:
    """Place a heatmap, a number in each cell that is not 0."""
    left, top = _text_width(chart.rows), _text_width(chart.columns)
    across, down = len(chart.columns) * _CELL, len(chart.rows) * _CELL
    grid = "".join(f"M{left} {top + i * _CELL}h{across}" for i in range(len(chart.rows) + 1))
    grid += "".join(f"M{left + j * _CELL} {top}v{down}" for j in range(len(chart.columns) + 1))
    return HeatmapShapes(
        width=left + across,
        height=top + down,
        grid=grid,
        rows=[Text(left - 6, top + i * _CELL + 15, name, "end") for i, name in enumerate(chart.rows)],
        columns=[Text(left + j * _CELL + 15, top - 6, name) for j, name in enumerate(chart.columns)],
        cells=[_cell(chart, i, j, left, top) for i, j in np.argwhere(chart.counts > 0).tolist()],
    )


def _cell(chart: Heatmap, i: int, j: int, left: int, top: int) -> Rectangle:
    count, scale = int(chart.counts[i, j]), float(chart.scale[i, j])
    style = "same" if chart.frames_diagonal and i == j else "cell strong" if scale > 0.5 else "cell"
    title = f"{chart.rows[i]}, {chart.columns[j]}: {count:,}"
    text = str(count) if count < 1000 else f"{count // 1000}k"
    return Rectangle(left + j * _CELL, top + i * _CELL, _CELL, _CELL, style, 0.12 + 0.88 * scale, title, text)


def _text_width(names: Sequence[str]) -> int:
    return 12 + 7 * max((len(name) for name in names), default=0)


def panel(chart: Panel, size: float = 132) -> PanelShapes:
    """Place a small plot of lines over the unit square."""
    box = Box(24, 4, size)
    mark = "" if chart.mark is None else f"M{box.x(chart.mark):.1f} {box.top}v{size}"
    paths = [(line.style, line_path(line.x, line.y, box)) for line in chart.lines]
    return PanelShapes(box.left + size + 10, box.top + size + 18, box, _middle(box), _ticks(box), paths, mark)


def reliability(chart: Reliability, size: float = 260, bars: float = 70) -> ReliabilityShapes:
    """Place a reliability diagram, and below it bars of the decisions per bin on a logarithmic scale."""
    box, bins = Box(30, 4, size), len(chart.decisions)
    shown = np.flatnonzero(np.isfinite(chart.predicted) & np.isfinite(chart.observed)).tolist()
    dots = [
        Rectangle(box.x(chart.predicted[i]), box.y(chart.observed[i]), 8, 8, title=_bin_title(chart, i)) for i in shown
    ]
    base = box.top + size + 34 + bars
    tallest = math.log10(1 + max(1, int(chart.decisions.max(initial=0))))
    columns = []
    for i, count in enumerate(chart.decisions.tolist()):
        height = bars * math.log10(1 + count) / tallest
        left = box.x(i / bins) + 1
        title = _bin_title(chart, i)
        columns.append(Rectangle(left, base - height, size / bins - 2, height, title=title, text=_short(count)))
    ideal = f"M{box.x(0)} {box.y(0)}L{box.x(1)} {box.y(1)}"
    line = line_path(chart.predicted, chart.observed, box)
    return ReliabilityShapes(box.left + size + 10, base + 4, box, _middle(box), _ticks(box), ideal, line, dots, columns)


def _bin_title(chart: Reliability, index: int) -> str:
    bins = len(chart.decisions)
    title = f"{index / bins:.1f} to {(index + 1) / bins:.1f}: {chart.decisions[index]:,} decisions"
    if chart.decisions[index]:
        title += f", mean {100 * chart.predicted[index]:.1f}%, true {100 * chart.observed[index]:.1f}%"
    return title


def _short(count: int) -> str:
    """Write a count in at most four characters, up to a million."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 9950 else f"{count / 1000:.0f}k"


def _middle(box: Box) -> str:
    half = box.size / 2
    return f"M{box.left} {box.top + half}h{box.size}M{box.left + half} {box.top}v{box.size}"


def _ticks(box: Box) -> list[Text]:
    """0, ½ and 1 on both axes."""
    marks = ((0.0, "0"), (0.5, "½"), (1.0, "1"))
    across = [Text(box.x(at), box.top + box.size + 13, text, "middle") for at, text in marks]
    return across + [Text(box.left - 4, box.y(at) + 4, text, "end") for at, text in marks]


def line_path(x: Floats, y: Floats, box: Box) -> str:
    """Write the SVG path of a line; NaN breaks it."""
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).astype(int))
    parts, pen = [], "M"
    for across, up in zip(x[chosen].tolist(), y[chosen].tolist(), strict=True):
        if math.isnan(across) or math.isnan(up):
            pen = "M"
            continue
        parts.append(f"{pen}{box.x(across):.1f} {box.y(up):.1f}")
        pen = "L"
    return "".join(parts)


def key(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """List the styles and labels of lines."""
    return [(line.style, line.label) for line in lines]
