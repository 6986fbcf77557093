"""Places on a map, as shapes for the SVG in the page: equirectangular, true to scale at the middle latitude."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mineral_batch.report import land
from mineral_batch.report.svg import Text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_batch.report.charts import Floats, Places

_WIDTH = 720
_CLUSTER = 6  # pixels; places nearer than this are one point
_KM_PER_DEGREE = 111.32
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)


class Spot(NamedTuple):
    """A point that stands for `images` images."""

    x: float
    y: float
    radius: float
    images: int


class MapShapes(NamedTuple):
    """A map: land, grid lines with their names, points and a scale bar; `label` says in words what it shows."""

    width: int
    height: int
    land: str
    grid: str
    names: list[Text]
    spots: list[Spot]
    scale: str
    scale_name: Text
    label: str


def world_map(chart: Places) -> MapShapes:
    """Place points on a map that shows all of them."""
    view = View.around(chart.points)
    grid, names = view.graticule()
    scale, scale_name = view.scale_bar()
    spots, counts = _cluster(view.pixels(chart.points))
    south, north = _coordinate(view.south, "NS"), _coordinate(view.north, "NS")
    west, east = _coordinate(view.west, "EW"), _coordinate(view.east, "EW")
    label = f"{len(chart.points):,} photographs between {south} and {north}, {west} and {east}"
    return MapShapes(
        width=_WIDTH,
        height=view.height,
        land=view.land(),
        grid=grid,
        names=names,
        spots=[Spot(x, y, min(12.0, 2 + math.sqrt(n)), n) for (x, y), n in zip(spots, counts, strict=True)],
        scale=scale,
        scale_name=scale_name,
        label=label,
    )


def _cluster(points: Floats) -> tuple[list[list[float]], list[int]]:
    """Merge points (N, 2) in pixels that fall into one small cell; return their means and their numbers."""
    _, cell, counts = np.unique(np.floor(points / _CLUSTER), axis=0, return_inverse=True, return_counts=True)
    sums = [np.bincount(cell.ravel(), weights=axis) for axis in points.T]
    return (np.stack(sums, axis=1) / counts[:, None]).tolist(), counts.tolist()


class View(NamedTuple):
    """A part of the earth, in degrees, on `_WIDTH` pixels."""

    south: float
    north: float
    west: float
    east: float

    @classmethod
    def around(cls, places: NDArray[np.float64]) -> View:
        """Show all places (N, 2), latitude and longitude, with a margin of 2 km or more, not higher than wide."""
        (south, west), (north, east) = places.min(axis=0).tolist(), places.max(axis=0).tolist()
        margin = max(0.01, 0.08 * max(north - south, east - west))
        south, north = max(-90.0, south - margin), min(90.0, north + margin)
        squeeze = max(0.1, math.cos(math.radians((south + north) / 2)))
        west, east = west - margin / squeeze, east + margin / squeeze
        missing = (north - south) / squeeze - (east - west)
        if missing > 0:
            west, east = west - missing / 2, east + missing / 2
        return cls(south, north, max(-180.0, west), min(180.0, east))

    @property
    def squeeze(self) -> float:
        """How much shorter a degree of longitude is than one of latitude, at the middle."""
        return max(0.1, math.cos(math.radians((self.south + self.north) / 2)))

    @property
    def per_degree(self) -> float:
        """Pixels per degree of longitude."""
        return _WIDTH / (self.east - self.west)

    @property
    def height(self) -> int:
        """Pixels."""
        return max(120, round((self.north - self.south) * self.per_degree / self.squeeze))

    def x(self, longitude: Floats | float) -> Floats:
        """Convert to pixels."""
        return np.asarray((np.asarray(longitude) - self.west) * self.per_degree)

    def y(self, latitude: Floats | float) -> Floats:
        """Convert to pixels."""
        return np.asarray((self.north - np.asarray(latitude)) / (self.north - self.south) * self.height)

    def pixels(self, places: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert (N, 2) latitude and longitude to x and y."""
        return np.column_stack([self.x(places[:, 1]), self.y(places[:, 0])])

    def land(self) -> str:
        """Write the SVG path of the land that reaches into the view."""
        parts = []
        for ring in land.rings():
            (west, south), (east, north) = ring.min(axis=0).tolist(), ring.max(axis=0).tolist()
            if west < self.east and east > self.west and south < self.north and north > self.south:
                points = zip(self.x(ring[:, 0]).tolist(), self.y(ring[:, 1]).tolist(), strict=True)
                parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
        return "".join(parts)

    def graticule(self) -> tuple[str, list[Text]]:
        """Place meridians and parallels at round degrees, with their names at the edge."""
        grid, names = "", []
        for value in _round_degrees(self.west, self.east):
            x = float(self.x(value))
            grid += f"M{x:.1f} 0v{self.height}"
            middle = min(max(x, 22.0), _WIDTH - 22.0)  # a name at the edge stays inside
            names.append(Text(middle, self.height + 13, _coordinate(value, "EW"), "middle"))
        for value in _round_degrees(self.south, self.north):
            y = float(self.y(value))
            grid += f"M0 {y:.1f}h{_WIDTH}"
            names.append(Text(4, y - 3, _coordinate(value, "NS")))
        return grid, names

    def scale_bar(self) -> tuple[str, Text]:
        """Place a bar of a round number of kilometers, at most a quarter of the width."""
        per_km = self.per_degree / (_KM_PER_DEGREE * self.squeeze)
        limit = _WIDTH / 4 / per_km
        power = 10 ** math.floor(math.log10(limit))
        length = max(step * power for step in (1, 2, 5) if step * power <= limit)
        y, width = self.height + 24, length * per_km
        text = f"{length:g} km" if length >= 1 else f"{length * 1000:g} m"
        bar = f"M{_WIDTH - 8 - width:.1f} {y - 4}v6h{width:.1f}v-6"
        return bar, Text(_WIDTH - 14 - width, y + 2, text, "end")


def _round_degrees(low: float, high: float) -> list[float]:
    step = next((step for step in _STEPS if (high - low) / step <= 7), 60)
    return [round(i * step, 6) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _coordinate(value: float, signs: str) -> str:
    return f"{abs(value):.5g}° {signs[0] if value >= 0 else signs[1]}"
