"""From a habit to a surface: which pixels a group of crystals covers, and which way each of them faces.

Orthographic view, x to the right and y down in pixels, z towards the viewer. A `Surface` holds its covered pixels
only, as flat arrays of length P, because shading costs the same per pixel wherever the pixel is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mineral_train.synth.solids import Doubles, Floats, solid_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_train.synth.looks import Look
    from mineral_train.synth.solids import Solid

Indexes = NDArray[np.intp]


@dataclass(frozen=True)
class Site:
    """Where a group grows.

    Attributes:
        x: centre, pixels.
        y: centre, pixels.
        radius: of the whole group, pixels.
        size: of the square picture, pixels.
    """

    x: float
    y: float
    radius: float
    size: int


@dataclass(frozen=True)
class Surface:
    """The visible surface of one group.

    Attributes:
        rows: (P,) of the covered pixels.
        columns: (P,).
        normal: (P, 3) unit vectors.
        zone: (P,) 0..1, place along the crystal's axis or across its bands: where `Look.second` shows.
        line: (P,) -1..1, the striae.
        tone: (P,) brightness, about 1: differs from crystal to crystal, lower in the depth of the group.
        edge: (P,) 0 or 1, on an edge between faces.
    """

    rows: Indexes
    columns: Indexes
    normal: Floats
    zone: Floats
    line: Floats
    tone: Floats
    edge: Floats


def grow(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """The surface of one group of a mineral at a site."""
    return _ROUNDED.get(look.form, faceted)(look, site, rng)


# --- Crystals with faces


@dataclass(frozen=True)
class _Crystal:
    """One placed crystal: `frame` rows are its own axes in the picture, `scale` its half widths in pixels."""

    centre: Doubles
    frame: Doubles
    scale: Doubles
    depth: float


@dataclass(frozen=True)
class _FaceTable:
    """Per face (F, ...): what shading needs, looked up by the face's number in the picture."""

    normal: Floats
    centre: Floats
    axis: Floats
    across: Floats
    reach: Floats
    tone: Floats


def faceted(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Polyhedra drawn from the back to the front; edges and numbers of faces go through Pillow's polygons."""
    solid = solid_of(look.form, rng)
    crystals = sorted(_stand(look, site, rng), key=lambda c: c.depth)
    numbers = Image.new("I", (site.size, site.size), 0)
    edges = Image.new("L", (site.size, site.size), 0)
    table = _draw(solid, crystals, rng, ImageDraw.Draw(numbers), ImageDraw.Draw(edges))
    return _looked_up(look, np.asarray(numbers), np.asarray(edges), table)


def _draw(
    solid: Solid,
    crystals: list[_Crystal],
    rng: np.random.Generator,
    numbers: ImageDraw.ImageDraw,
    edges: ImageDraw.ImageDraw,
) -> _FaceTable:
    """Paint every face that looks at the viewer with its number, from 1; row 0 of the table is no face."""
    rows: list[list[Doubles]] = []
    for rank, crystal in enumerate(crystals):
        # Those behind are in the shade of those in front.
        tone = np.array([(0.72 + 0.28 * (rank + 1) / len(crystals)) * rng.normal(1.0, 0.06)])
        points = (solid.vertices * crystal.scale) @ crystal.frame + crystal.centre
        for face, stria in zip(solid.faces, solid.striae, strict=True):
            normal = _unit(np.cross(points[face[1]] - points[face[0]], points[face[-1]] - points[face[0]]))
            if normal[2] <= 0.02:
                continue
            rows.append(_face_row(crystal, points[face], normal, stria, tone))
            outline = [(float(x), float(y)) for x, y, _ in points[face]]
            numbers.polygon(outline, fill=len(rows))
            edges.polygon(outline, fill=0, outline=255)
    columns = [np.stack(column).astype(np.float32) for column in zip(*rows, strict=True)]
    return _FaceTable(*columns)


def _face_row(
    crystal: _Crystal, corners: Doubles, normal: Doubles, stria: Doubles, tone: Doubles
) -> list[Doubles]:
    centre = corners.mean(axis=0)
    reach = np.array([np.abs(corners - centre).max() + 1e-6])
    axis = crystal.frame[2] / crystal.scale[2]
    across = np.cross(normal, stria @ crystal.frame) / crystal.scale[0]
    # The face's plane gives z from x and y, so that both coordinates stay linear in the pixel.
    return [normal, np.append(centre, (centre - crystal.centre) @ axis), axis, across, reach, tone]


def _looked_up(
    look: Look, numbers: NDArray[np.int32], edges: NDArray[np.uint8], table: _FaceTable
) -> Surface:
    rows, columns = np.nonzero(numbers)
    face = numbers[rows, columns] - 1
    normal, centre = table.normal[face], table.centre[face]
    dx, dy = columns - centre[:, 0], rows - centre[:, 1]
    dz = -(normal[:, 0] * dx + normal[:, 1] * dy) / normal[:, 2]
    offset = np.stack([dx, dy, dz], axis=1).astype(np.float32)
    # Faces are a little domed: a perfectly flat one has a single colour, which no crystal has.
    domed = normal + 0.22 * offset / table.reach[face]
    zone = 0.5 + 0.5 * (centre[:, 3] + np.einsum("pi,pi->p", offset, table.axis[face]))
    line = np.sin(np.pi * look.striae * np.einsum("pi,pi->p", offset, table.across[face]))
    return Surface(
        rows, columns, _units(domed), np.clip(zone, 0, 1).astype(np.float32), line.astype(np.float32),
        table.tone[face][:, 0], (edges[rows, columns] / 255).astype(np.float32),
    )  # fmt: skip


# --- How crystals stand together


def _stand(look: Look, site: Site, rng: np.random.Generator) -> list[_Crystal]:
    count = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    return _GROWTHS[look.growth](look, site, count, rng)


def _scattered(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Anyhow in a disc, the largest in the middle and in front."""
    places = _disc(count, rng)
    width = 0.95 * site.radius / np.sqrt(count) * rng.uniform(0.75, 1.3, count)
    width[0] *= 1.35
    crystals = []
    for (x, y), half in zip(places, width, strict=True):
        frame = _tilted(rng)
        scale = half * np.array([1.0, 1.0, rng.uniform(*look.elongation)])
        crystals.append(_Crystal(_at(site, x, y), frame, scale, -float(np.hypot(x, y))))
    return crystals


def _druse(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Standing on the rock: axes lean outwards, and those in the middle come towards the viewer."""
    crystals = []
    for x, y in _disc(count, rng, reach=0.62):
        lean = np.array([1.3 * x, 1.3 * y, 0.0]) + rng.normal(0, 0.25, 3) + [0.0, -0.25, 0.75]
        long = rng.uniform(*look.elongation)
        half = site.radius * rng.uniform(0.75, 1.15) * 0.85 / np.sqrt(count) / np.sqrt(long / 1.6)
        frame = _frame(_unit(lean), rng.uniform(0, 2 * np.pi))
        centre = _at(site, x, y) + frame[2] * half * long * 0.35
        crystals.append(_Crystal(centre, frame, half * np.array([1.0, 1.0, long]), float(y - np.hypot(x, y))))
    return crystals


def _spray(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Rays from one or two points."""
    main, opening = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 3.1)
    crystals = []
    for turn in main + opening * np.linspace(-1, 1, count) + rng.normal(0, 0.12, count):
        axis = _unit(np.array([np.cos(turn), np.sin(turn), rng.uniform(0.0, 0.7)]))
        long = rng.uniform(*look.elongation)
        length = site.radius * rng.uniform(0.38, 0.55)
        root = -0.25 * site.radius * np.array([np.cos(main), np.sin(main), 0.0]) * (opening < 2.4)
        frame = _frame(axis, rng.uniform(0, 2 * np.pi))
        scale = length * np.array([1 / long, 1 / long, 1.0])
        crystals.append(_Crystal(_at(site, 0, 0) + root + axis * length * 0.9, frame, scale, float(axis[2])))
    return crystals


def _stack(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Leaf on leaf: nearly parallel plates that overlap."""
    leader = _tilted(rng, least=0.45)
    crystals = []
    for depth, (x, y) in enumerate(_disc(count, rng, reach=0.75)):
        frame = _orthonormal(leader + rng.normal(0, 0.22, (3, 3)))
        scale = site.radius * rng.uniform(0.22, 0.36) * np.array([1.0, 1.0, rng.uniform(*look.elongation)])
        crystals.append(_Crystal(_at(site, x, y), frame, scale, float(depth)))
    return crystals


_GROWTHS: dict[str, Callable[[Look, Site, int, np.random.Generator], list[_Crystal]]] = {
    "scattered": _scattered,
    "druse": _druse,
    "spray": _spray,
    "stack": _stack,
}


def _disc(count: int, rng: np.random.Generator, reach: float = 0.72) -> Doubles:
    """(count, 2) places in a disc, evenly spread by the golden angle, the first in the middle."""
    order = np.arange(count)
    turn = order * 2.399963 + rng.uniform(0, 2 * np.pi)
    radius = reach * np.sqrt(order / count)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1) + rng.normal(0, 0.07, (count, 2))


def _at(site: Site, x: float, y: float) -> Doubles:
    return np.array([site.x + x * site.radius, site.y + y * site.radius, 0.0])


def _tilted(rng: np.random.Generator, least: float = 0.15) -> Doubles:
    """A random orientation whose axis points to the viewer by at least `least`: none is seen edge on."""
    height = rng.uniform(least, 0.95)
    turn = rng.uniform(0, 2 * np.pi)
    flat = np.sqrt(1 - height**2)
    return _frame(np.array([flat * np.cos(turn), flat * np.sin(turn), height]), rng.uniform(0, 2 * np.pi))


def _frame(axis: Doubles, spin: float) -> Doubles:
    """Rows: two directions across the axis, turned by `spin`, and the axis."""
    first = _unit(np.cross(axis, [0.3, 0.9, -0.2]))
    second = np.cross(axis, first)
    across = np.cos(spin) * first + np.sin(spin) * second
    return np.stack([across, np.cross(axis, across), axis])


def _orthonormal(rows: Doubles) -> Doubles:
    axis = _unit(rows[2])
    across = _unit(rows[0] - (rows[0] @ axis) * axis)
    return np.stack([across, np.cross(axis, across), axis])


def _unit(vector: Doubles) -> Doubles:
    unit: Doubles = vector / np.linalg.norm(vector)
    return unit


def _units(vectors: Floats) -> Floats:
    units: Floats = vectors / np.sqrt(np.einsum("pi,pi->p", vectors, vectors))[:, None]
    return units.astype(np.float32)


# --- Surfaces without faces


def _botryoidal(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Grape-like spheres; the zone counts shells from each sphere's top."""
    count = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    grid = np.zeros((site.size, site.size), np.float32)
    zone, tone = np.zeros_like(grid), np.ones_like(grid)
    for x, y in _disc(count, rng, reach=0.78):
        radius = site.radius * rng.uniform(0.2, 0.34)
        centre = _at(site, x, y)
        rise = site.radius * (0.5 - 0.5 * float(np.hypot(x, y)))
        _bulge(grid, zone, tone, centre + [0.0, 0.0, rise], radius, float(rng.normal(1.0, 0.05)))
    return _from_height(grid, grid > 0, zone, tone)


def _bulge(height: Floats, zone: Floats, tone: Floats, centre: Doubles, radius: float, shade: float) -> None:
    """Raise a sphere above what is there, in place."""
    left, top = (max(0, int(c - radius)) for c in centre[:2])
    window = np.s_[top : int(centre[1] + radius) + 2, left : int(centre[0] + radius) + 2]
    rows, columns = np.mgrid[window]
    rows, columns = rows[: height.shape[0] - top], columns[:, : height.shape[1] - left]
    squared = ((rows - centre[1]) ** 2 + (columns - centre[0]) ** 2) / radius**2
    dome = centre[2] + radius * np.sqrt(np.clip(1 - squared, 0, 1)) + 1
    above = (squared < 1) & (dome > height[window])
    height[window][above] = dome[above]
    zone[window][above] = np.sqrt(squared[above])
    tone[window][above] = shade


def _nugget(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Lumps with a rough skin."""
    count = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    height = np.zeros((site.size, site.size), np.float32)
    places = _disc(count, rng, reach=0.6) if count > 1 else np.zeros((1, 2))
    for x, y in places:
        radius = site.radius * rng.uniform(0.8, 1.0) / np.sqrt(count) * 1.05
        inside = 1 - polar(site.size, _at(site, x, y), radius, rng, 0.22) ** 2
        np.maximum(height, radius * np.sqrt(np.clip(inside, 0, 1)), out=height)
    cover = height > 0
    coarse = noise(site.size, rng, site.radius / 5) * site.radius * 0.22
    height += coarse + noise(site.size, rng, site.radius / 14) * site.radius * 0.05
    return _from_height(
        height, cover, noise(site.size, rng, site.radius / 3.2) * 0.5 + 0.5, np.ones_like(height)
    )


def _dendrite(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Trees of metal: stems that fork, blurred into round wires."""
    drawing = Image.new("L", (site.size, site.size), 0)
    pen = ImageDraw.Draw(drawing)
    stems = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    for turn in rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, stems, endpoint=False):
        _branch(pen, site.x, site.y, turn, site.radius * 0.42, 4, rng)
    soft = drawing.filter(ImageFilter.GaussianBlur(site.radius * 0.045))
    height = np.asarray(soft, np.float32) / 255
    return _from_height(
        height * site.radius * 0.22, height > 0.4, np.zeros_like(height),
        1 + 0.12 * noise(site.size, rng, site.radius / 6),
    )  # fmt: skip


def _branch(
    pen: ImageDraw.ImageDraw,
    x: float,
    y: float,
    turn: float,
    length: float,
    forks: int,
    rng: np.random.Generator,
) -> None:
    turn += rng.normal(0, 0.2)
    end_x, end_y = x + length * np.cos(turn), y + length * np.sin(turn)
    pen.line([(x, y), (end_x, end_y)], fill=255, width=max(2, round(length * 0.32)))
    for fork in (-0.9, 0.0, 0.9) if forks > 1 else ():
        _branch(pen, end_x, end_y, turn + fork, length * rng.uniform(0.5, 0.75), forks - 1, rng)


def _nodule(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """A polished slice: flat, with a rim; the zone runs from the heart to the rim."""
    radius = polar(site.size, _at(site, 0, 0), site.radius * 0.92, rng, 0.16)
    wavy = np.clip(radius + 0.06 * noise(site.size, rng, site.radius / 4), 0, 1)
    height = site.radius * 0.25 * np.sqrt(np.clip(1 - radius**8, 0, 1))
    return _from_height(height, radius < 1, wavy, np.ones_like(wavy))


_ROUNDED: dict[str, Callable[[Look, Site, np.random.Generator], Surface]] = {
    "botryoidal": _botryoidal,
    "nugget": _nugget,
    "dendrite": _dendrite,
    "nodule": _nodule,
}


def _from_height(height: Floats, cover: NDArray[np.bool_], zone: Floats, tone: Floats) -> Surface:
    """Normals from the slope of a height map (H, W), in pixels."""
    rows, columns = np.nonzero(cover)
    normal = slopes(height)[rows, columns]
    flat = np.zeros(len(rows), np.float32)
    return Surface(
        rows, columns, normal, np.clip(zone, 0, 1)[rows, columns].astype(np.float32), flat,
        tone[rows, columns].astype(np.float32), flat,
    )  # fmt: skip


def slopes(height: Floats) -> Floats:
    """(H, W, 3) unit normals of a height map (H, W) in pixels."""
    down, right = np.gradient(height)
    scale = 1 / np.sqrt(down**2 + right**2 + 1)
    normals: Floats = np.stack([-right * scale, -down * scale, scale], axis=-1).astype(np.float32)
    return normals


def polar(size: int, centre: Doubles, radius: float, rng: np.random.Generator, roughness: float) -> Floats:
    """(size, size): distance from the centre over the radius of an irregular outline, 1 on the outline."""
    rows, columns = np.ogrid[:size, :size]
    dx, dy = (columns - centre[0]).astype(np.float32), (rows - centre[1]).astype(np.float32)
    turns = np.linspace(0, 2 * np.pi, 257)
    waves = sum(
        rng.normal(0, roughness / k) * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) for k in range(2, 8)
    )
    angle = np.arctan2(dy, dx) * (256 / (2 * np.pi)) + 128
    outline = (radius * (1 + np.clip(waves, -0.3, 0.3))).astype(np.float32)
    distance: Floats = np.sqrt(dx * dx + dy * dy) / outline[angle.astype(np.intp)]
    return distance


def noise(size: int, rng: np.random.Generator, scale: float) -> Floats:
    """(size, size) smooth noise with features of about `scale` pixels, mostly within -1..1."""
    cells = max(2, round(size / max(scale, 1.0)) + 2)
    coarse = Image.fromarray(rng.normal(0, 0.55, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
