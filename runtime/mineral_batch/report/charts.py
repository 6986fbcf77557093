"""Charts as SVG and tables, coloured by the page's style sheet so that they follow light, dark and print."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.report.markup import Markup, join, tag

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BAR = 240
_PANEL = 132  # pixels of a small panel's plot
_CELL = 22
_MAP = 720
_CLUSTER = 6
_KM_PER_DEGREE = 111.32
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)
_CURVE_POINTS = 120


class Bar(NamedTuple):
    """A row of a bar chart: a name, its length as a fraction of the longest, and the cells behind it."""

    name: str
    fraction: float
    cells: tuple[str, ...]


def bars(caption: str, columns: Sequence[str], rows: Sequence[Bar], *, link: bool = False) -> Markup:
    """Horizontal bars as a table, so that a screen reader reads the figures.

    Args:
        caption: of the table.
        columns: their headings; the bar comes behind the name.
        rows: from top to bottom.
        link: make each name a button that shows its pictures in the gallery.
    """
    name, *others = columns
    heads = [tag("th", name, scope="col"), tag("td", aria_hidden="true"), *(tag("th", c, scope="col") for c in others)]
    body = [_bar_row(row, link) for row in rows]
    return tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
        class_="bars",
    )


def _bar_row(row: Bar, link: bool) -> Markup:
    name = tag("button", row.name, type="button", class_="link", data_mineral=row.name) if link else row.name
    width = max(0.0, min(1.0, row.fraction)) * _BAR
    bar = tag(
        "svg",
        tag("rect", class_="track", width=_BAR, height=10, rx=2),
        tag("rect", class_="fill", width=width, height=10, rx=2) if width else None,
        viewBox=f"0 0 {_BAR} 10",
        class_="bar",
        preserveAspectRatio="none",
    )
    cells = [tag("td", cell, class_="number") for cell in row.cells]
    return tag("tr", tag("th", name, scope="row"), tag("td", bar, aria_hidden="true"), *cells)


def matrix(
    label: str,
    rows: Sequence[str],
    columns: Sequence[str],
    counts: NDArray[np.int64],
    scale: NDArray[np.float64],
    diagonal: bool,
) -> Markup:
    """A heat map with a number in each cell that is not 0.

    Args:
        label: what it shows, for those who do not see it.
        rows: R names.
        columns: C names, written upwards.
        counts: (R, C) the numbers.
        scale: (R, C) 0..1, how strong its colour is.
        diagonal: whether the cells of equal row and column are of another kind.
    """
    left, top = _text_width(rows), _text_width(columns)
    parts = [_row_name(name, left, top + i * _CELL) for i, name in enumerate(rows)]
    parts += [_column_name(name, left + j * _CELL, top) for j, name in enumerate(columns)]
    for i, j in np.argwhere(counts > 0).tolist():
        kind = "same" if diagonal and i == j else "cell"
        title = f"{rows[i]}, {columns[j]}: {counts[i, j]}"
        place = (left + j * _CELL, top + i * _CELL)
        parts.append(_cell(place, kind, int(counts[i, j]), float(scale[i, j]), title))
    width, height = left + len(columns) * _CELL, top + len(rows) * _CELL
    parts.insert(0, _grid(left, top, len(columns), len(rows)))
    svg = tag("svg", *parts, width=width, height=height, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)
    return tag("div", svg, class_="scroll", tabindex="0", role="group", aria_label=label)


def _grid(left: int, top: int, columns: int, rows: int) -> Markup:
    across = [f"M{left} {top + i * _CELL}h{columns * _CELL}" for i in range(rows + 1)]
    down = [f"M{left + j * _CELL} {top}v{rows * _CELL}" for j in range(columns + 1)]
    return tag("path", d="".join(across + down), class_="grid")


def _text_width(names: Sequence[str]) -> int:
    return 12 + 7 * max((len(name) for name in names), default=0)


def _row_name(name: str, left: int, y: int) -> Markup:
    return tag("text", name, x=left - 6, y=y + 15, text_anchor="end")


def _column_name(name: str, x: int, top: int) -> Markup:
    return tag("text", name, x=0, y=0, transform=f"translate({x + 15} {top - 6}) rotate(-90)")


def _cell(place: tuple[int, int], kind: str, count: int, scale: float, title: str) -> Markup:
    x, y = place
    text = str(count) if count < 1000 else f"{count // 1000}k"
    return tag(
        "g",
        tag("title", title),
        tag("rect", x=x, y=y, width=_CELL, height=_CELL, class_=kind, fill_opacity=0.12 + 0.88 * scale),
        tag("text", text, x=x + _CELL / 2, y=y + 15, text_anchor="middle", class_="on" if scale > 0.5 else "off"),
    )


class Line(NamedTuple):
    """A line in a panel.

    Attributes:
        kind: its class in the style sheet.
        x: of its points, 0..1; NaN breaks the line.
        y: the same.
        dots: whether the points are marked.
    """

    kind: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dots: bool = False


def panel(title: str, note: str, lines: Sequence[Line], mark: float | None = None, size: int = _PANEL) -> Markup:
    """A small plot of lines over the unit square.

    Args:
        title: above it.
        note: below the title.
        lines: what is drawn.
        mark: x of a vertical line.
        size: of the plot, pixels.
    """
    left, top = 24, 4
    frame = tag("rect", x=left, y=top, width=size, height=size, class_="frame")
    middle = tag("path", d=f"M{left} {top + size / 2}h{size}M{left + size / 2} {top}v{size}", class_="grid")
    drawn = [tag("path", d=_path(line, left, top, size), class_=f"line {line.kind}") for line in lines]
    drawn += [dot for line in lines if line.dots for dot in _dots(line, left, top, size)]
    if mark is not None:
        drawn.append(tag("path", d=f"M{left + mark * size:.1f} {top}v{size}", class_="mark"))
    svg = tag(
        "svg",
        frame,
        middle,
        *_ticks(left, top, size),
        *drawn,
        width=left + size + 10,
        height=top + size + 18,
        viewBox=f"0 0 {left + size + 10} {top + size + 18}",
        role="img",
        aria_label=f"{title}: {note}",
    )
    return tag("figure", tag("figcaption", tag("b", title), " ", tag("span", note)), svg, class_="panel")


def _ticks(left: int, top: int, size: int) -> list[Markup]:
    """0, ½ and 1 on both axes."""
    below, beside = top + size + 13, left - 4
    marks = ((0.0, "0"), (0.5, "½"), (1.0, "1"))
    across = [tag("text", text, x=left + at * size, y=below, text_anchor="middle") for at, text in marks]
    up = [tag("text", text, x=beside, y=top + (1 - at) * size + 4, text_anchor="end") for at, text in marks]
    return across + up


def _path(line: Line, left: float, top: float, size: float) -> str:
    """SVG path of a line, with as many points as can be seen."""
    chosen = np.unique(np.linspace(0, len(line.x) - 1, min(len(line.x), _CURVE_POINTS)).astype(int))
    parts, pen = [], "M"
    for x, y in zip(line.x[chosen].tolist(), line.y[chosen].tolist(), strict=True):
        if math.isnan(x) or math.isnan(y):
            pen = "M"
            continue
        parts.append(f"{pen}{left + x * size:.1f} {top + (1 - y) * size:.1f}")
        pen = "L"
    return "".join(parts)


def _dots(line: Line, left: float, top: float, size: float) -> list[Markup]:
    points = np.column_stack([left + line.x * size, top + (1 - line.y) * size])
    shown = points[np.isfinite(points).all(axis=1)].tolist()
    return [tag("circle", cx=x, cy=y, r=3, class_="dot") for x, y in shown]


def world(places: NDArray[np.float64]) -> Markup:
    """Where pictures were taken: points over meridians and parallels, with a scale; no map lies below.

    Equirectangular, true to scale at the middle latitude.

    Args:
        places: (N, 2) latitude and longitude, degrees; at least one.
    """
    view = _View.around(places)
    spots, counts = _clustered(view.pixels(places))
    dots = [
        tag(
            "circle",
            tag("title", f"{n} picture{'s' if n > 1 else ''}"),
            cx=float(x),
            cy=float(y),
            r=min(12.0, 2 + math.sqrt(n)),
            class_="place",
        )
        for (x, y), n in zip(spots.tolist(), counts.tolist(), strict=True)
    ]
    label = (
        f"{len(places)} pictures between {_coordinate(view.south, 'NS')} and {_coordinate(view.north, 'NS')}, "
        f"{_coordinate(view.west, 'EW')} and {_coordinate(view.east, 'EW')}"
    )
    frame = tag("rect", width=_MAP, height=view.height, class_="frame")
    size = {"width": _MAP, "height": view.height + 34, "viewBox": f"0 0 {_MAP} {view.height + 34}"}
    svg = tag("svg", frame, *view.graticule(), *dots, view.scale_bar(), role="img", aria_label=label, **size)
    return tag("div", svg, class_="scroll")


def _clustered(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points (N, 2) in pixels -> (M, 2), one for those that fall into one small cell, and how many each stands for."""
    _, cell, counts = np.unique(np.floor(points / _CLUSTER), axis=0, return_inverse=True, return_counts=True)
    sums = [np.bincount(cell.ravel(), weights=axis) for axis in points.T]
    return np.stack(sums, axis=1) / counts[:, None], counts


class _View(NamedTuple):
    """A part of the earth on `_MAP` pixels of width; degrees."""

    south: float
    north: float
    west: float
    east: float

    @classmethod
    def around(cls, places: NDArray[np.float64]) -> _View:
        """All places with a margin, at least about two kilometres, not more than twice as high as wide."""
        (south, west), (north, east) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
        margin = max(0.01, 0.08 * max(north - south, east - west))
        south, north = max(-90.0, south - margin), min(90.0, north + margin)
        squeeze = max(0.1, math.cos(math.radians((south + north) / 2)))
        west, east = west - margin / squeeze, east + margin / squeeze
        lacking = (north - south) / (1.0 * squeeze) - (east - west)
        if lacking > 0:
            west, east = west - lacking / 2, east + lacking / 2
        return cls(south, north, max(-180.0, west), min(180.0, east))

    @property
    def squeeze(self) -> float:
        """How much shorter a degree of longitude is than one of latitude, at the middle."""
        return max(0.1, math.cos(math.radians((self.south + self.north) / 2)))

    @property
    def per_degree(self) -> float:
        """Pixels per degree of longitude."""
        return _MAP / (self.east - self.west)

    @property
    def height(self) -> int:
        """Pixels."""
        return max(120, round((self.north - self.south) * self.per_degree / self.squeeze))

    def pixels(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, 2) degrees -> (N, 2) x and y."""
        x = (places[:, 1] - self.west) * self.per_degree
        y = (self.north - places[:, 0]) / (self.north - self.south) * self.height
        return np.column_stack([x, y])

    def graticule(self) -> list[Markup]:
        """Meridians and parallels at round degrees, named at the edge."""
        parts = []
        for value in _round_degrees(self.west, self.east):
            x = (value - self.west) * self.per_degree
            parts.append(tag("path", d=f"M{x:.1f} 0v{self.height}", class_="grid"))
            parts.append(tag("text", _coordinate(value, "EW"), x=x, y=self.height + 13, text_anchor="middle"))
        for value in _round_degrees(self.south, self.north):
            y = (self.north - value) / (self.north - self.south) * self.height
            parts.append(tag("path", d=f"M0 {y:.1f}h{_MAP}", class_="grid"))
            parts.append(tag("text", _coordinate(value, "NS"), x=4, y=y - 3))
        return parts

    def scale_bar(self) -> Markup:
        """A round number of kilometres, at most a quarter of the width."""
        per_km = self.per_degree / (_KM_PER_DEGREE * self.squeeze)
        limit = _MAP / 4 / per_km
        power = 10 ** math.floor(math.log10(limit))
        length = max(step * power for step in (1, 2, 5) if step * power <= limit)
        y, width = self.height + 24, length * per_km
        bar = tag("path", d=f"M{_MAP - 8 - width:.1f} {y - 4}v6h{width:.1f}v-6", class_="scale")
        text = f"{length:g} km" if length >= 1 else f"{length * 1000:g} m"
        return join([bar, tag("text", text, x=_MAP - 14 - width, y=y + 2, text_anchor="end")])


def _round_degrees(low: float, high: float) -> list[float]:
    step = next((step for step in _STEPS if (high - low) / step <= 7), 60)
    first = math.ceil(low / step)
    return [round(i * step, 6) for i in range(first, math.floor(high / step) + 1)]


def _coordinate(value: float, signs: str) -> str:
    return f"{abs(value):.5g}° {signs[0] if value >= 0 else signs[1]}"
