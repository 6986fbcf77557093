"""What a chart shows, apart from how it is drawn.

`figures` builds each chart once, and two renderers draw it: `svg` with the page's templates, as HTML and SVG that
follow the page's light, dark and print styles; `plots` with matplotlib, as files for papers. Matplotlib's SVG cannot
serve the page: it styles every element inline, which the page's content security policy forbids, it has no dark mode,
and every report would require matplotlib. For 587 labeled images it is 560 kB in 3.8 s; the whole page with the same
charts is 210 kB in 0.02 s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Bar(NamedTuple):
    """A row of a bar chart.

    Attributes:
        name: of the row.
        value: the length of the bar.
        cells: the numbers behind the bar, as text.
        is_faint: whether the row rests on too little data to be compared with the others.
    """

    name: str
    value: float
    cells: tuple[str, ...]
    is_faint: bool = False


@dataclass(frozen=True)
class Bars:
    """Horizontal bars with numbers.

    Attributes:
        name: of the plot's files.
        caption: what it shows.
        columns: headings: of the rows' names, then of their cells.
        rows: from top to bottom, the faint ones last.
        full: the value of a bar of full length; None: the largest value.
        faint_note: heading of the faint rows.
        mean: a value to mark, with its name.
        links: whether each name is that of a mineral whose photographs can be shown.
        words: those of `columns` whose cells are words, which may be broken into lines.
    """

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Bar, ...]
    full: float | None = None
    faint_note: str = ""
    mean: tuple[float, str] | None = None
    links: bool = False
    words: tuple[str, ...] = ()

    @property
    def length(self) -> float:
        """The value of a bar of full length."""
        return self.full or max((row.value for row in self.rows), default=0) or 1.0


@dataclass(frozen=True)
class Heatmap:
    """A table of counts with R rows and C columns.

    Attributes:
        name: of the plot's files.
        caption: what it shows.
        rows: R names.
        columns: C names.
        counts: (R, C).
        scale: (R, C), 0..1, how strong each cell's color is.
        down: what the rows are.
        across: what the columns are.
        frames_diagonal: whether the diagonal is another quantity, drawn as frames.
    """

    name: str
    caption: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: NDArray[np.int64]
    scale: Floats
    down: str
    across: str
    frames_diagonal: bool = False


class Line(NamedTuple):
    """A line over the unit square; NaN breaks it.

    Attributes:
        style: first, second or third.
        label: in the key.
        x: of its points.
        y: of its points.
    """

    style: str
    label: str
    x: Floats
    y: Floats


class Panel(NamedTuple):
    """A small plot of lines over the unit square; `mark`: x of a vertical line."""

    title: str
    note: str
    lines: tuple[Line, ...]
    mark: float | None = None


@dataclass(frozen=True)
class Panels:
    """Small plots with the same axes.

    Attributes:
        name: of the plot's files.
        caption: what they show.
        across: the x axis.
        up: the y axis.
        panels: in order.
        mark: what the panels' vertical lines are; empty: there are none.
    """

    name: str
    caption: str
    across: str
    up: str
    panels: tuple[Panel, ...]
    mark: str = ""


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram of B bins of equal width, with the number of decisions in each.

    Attributes:
        name: of the plot's files.
        caption: what it shows.
        predicted: (B,) mean probability; NaN in an empty bin.
        observed: (B,) fraction that is true; NaN in an empty bin.
        decisions: (B,) how many.
        error: expected calibration error.
    """

    name: str
    caption: str
    predicted: Floats
    observed: Floats
    decisions: NDArray[np.int64]
    error: float


@dataclass(frozen=True)
class Places:
    """Points on a map; `points`: (N, 2) latitude and longitude, degrees, N at least 1."""

    name: str
    caption: str
    points: Floats


Chart = Bars | Heatmap | Panels | Reliability | Places
