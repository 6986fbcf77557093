"""Make the outline of the land on the report's map: runtime/mineral_batch/report/assets/land.json.

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python docs/make_land.py package/land-110m.json

The data are Natural Earth's land at 1:110 million, version 4.1.0, which is in the public domain
(https://www.naturalearthdata.com/about/terms-of-use/), redistributed as TopoJSON by the package world-atlas (ISC).
Simplified with the algorithm of Douglas and Peucker (1973) to what can be seen on a map of 720 pixels.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]  # (N, 2) longitude and latitude, degrees

TARGET = Path(__file__).parent.parent / "runtime/mineral_batch/report/assets/land.json"
TOLERANCE = 0.6  # degrees; a map of the whole world has two pixels a degree
SMALLEST = 4  # square degrees; smaller islands are left out
SOURCE = "Natural Earth 4.1.0, land, 1:110 million, simplified by docs/make_land.py; public domain"


def main(topology: Path) -> None:
    """Write {source, rings: [[longitude, latitude, longitude, ...], ...]}, in tenths of a degree."""
    whole = [part for ring in rings_of(json.loads(topology.read_text("utf-8"))) for part in cut_at_antimeridian(ring)]
    rings = [simplify(ring, TOLERANCE) for ring in whole]
    large = [ring for ring in rings if len(ring) > 3 and area(ring) > SMALLEST]
    outline = {"source": SOURCE, "rings": [(10 * ring).round().astype(int).ravel().tolist() for ring in large]}
    TARGET.write_text(json.dumps(outline, separators=(",", ":")) + "\n", "utf-8")
    sys.stdout.write(f"{len(large)} rings, {sum(map(len, large))} points, {TARGET.stat().st_size} bytes\n")


def rings_of(topology: dict[str, Any]) -> list[Points]:
    """Decode TopoJSON (https://github.com/topojson/topojson-specification): quantized, delta-encoded, shared arcs."""
    scale, translate = (np.array(topology["transform"][name]) for name in ("scale", "translate"))
    arcs = [np.cumsum(arc, axis=0) * scale + translate for arc in topology["arcs"]]
    polygons = [polygon for one in topology["objects"]["land"]["geometries"] for polygon in one["arcs"]]
    return [
        np.concatenate([arcs[i] if i >= 0 else arcs[~i][::-1] for i in ring])
        for polygon in polygons
        for ring in polygon
    ]


def cut_at_antimeridian(ring: Points) -> list[Points]:
    """Cut a ring that crosses 180 degrees into its parts on either side; a ring around the south pole is closed there.

    Drawn as it is, such a ring would run back across the whole map.
    """
    longitude = ring[:, 0] + 360 * np.cumsum(np.round(-np.diff(ring[:, 0], prepend=ring[0, 0]) / 360))
    line = np.column_stack([longitude, ring[:, 1]])
    if abs(line[-1, 0] - line[0, 0]) > 180:
        line = np.concatenate([line, [[line[-1, 0], -90], [line[0, 0], -90]], line[:1]])
    parts = [_clip(_clip(line + np.array([shift, 0]), -180, below=False), 180, below=True) for shift in (-360, 0, 360)]
    return [part for part in parts if len(part)]


def _clip(ring: Points, limit: float, *, below: bool) -> Points:
    """Keep the part of a closed ring below or above a longitude (Sutherland and Hodgman 1974)."""
    inside = ring[:, 0] <= limit if below else ring[:, 0] >= limit
    points: list[Points] = []
    for i in range(1, len(ring)):
        if inside[i] != inside[i - 1]:
            part = (limit - ring[i - 1, 0]) / (ring[i, 0] - ring[i - 1, 0])
            points.append(np.array([limit, ring[i - 1, 1] + part * (ring[i, 1] - ring[i - 1, 1])]))
        if inside[i]:
            points.append(ring[i])
    return np.array([*points, points[0]]) if points else np.empty((0, 2))


def simplify(line: Points, tolerance: float) -> Points:
    """Leave out the points nearer than `tolerance` to the line without them (Douglas and Peucker 1973)."""
    middle = len(line) // 2  # a ring starts where it ends: cut it into two lines
    return np.concatenate([_simplify(line[: middle + 1], tolerance)[:-1], _simplify(line[middle:], tolerance)])


def _simplify(line: Points, tolerance: float) -> Points:
    if len(line) < 3:
        return line
    start, along = line[0], line[-1] - line[0]
    length = float(np.hypot(*along)) or 1.0
    offset = line - start
    distance = np.abs(offset[:, 0] * along[1] - offset[:, 1] * along[0]) / length
    farthest = int(distance.argmax())
    if distance[farthest] <= tolerance:
        return line[[0, -1]]
    return np.concatenate([_simplify(line[: farthest + 1], tolerance)[:-1], _simplify(line[farthest:], tolerance)])


def area(ring: Points) -> float:
    """The area inside a ring, square degrees (shoelace formula)."""
    x, y = ring.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
