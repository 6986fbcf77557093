"""From a habit to a surface: which pixels a group of crystals covers, and which way each of them faces.

Orthographic view, x to the right and y down in pixels, z towards the viewer. A `Surface` holds its covered pixels
only, as flat arrays of length P, because shading costs the same per pixel wherever the pixel is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mineral_train.synth.solids import Doubles, Floats, solid_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_train.synth.looks import Look
    from mineral_train.synth.solids import Solid

_Real = TypeVar("_Real", np.float32, np.float64)
Bytes = NDArray[np.uint8]
Indexes = NDArray[np.intp]


@dataclass(frozen=True)
class Site:
    """Where a group grows.

    Attributes:
        x: center, pixels.
        y: center, pixels.
        radius: of the whole group, pixels.
        size: of the square image, pixels.
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
    """One placed crystal; those of greater depth are nearer to the viewer.

    `frame` (3, 3) has the crystal's own axes as rows, in the image; `half` is half its width, pixels.
    """

    center: Doubles
    frame: Doubles
    half: float
    elongation: float
    depth: float


@dataclass(frozen=True)
class _Faces:
    """What shading needs per face (F, ...), looked up by the face's number in the image.

    `axis` and `across` turn an offset in pixels into the place along the crystal and across the striae; `zone` is
    the place of the face's center along the crystal, -1..1.
    """

    normal: Floats
    center: Floats
    axis: Floats
    across: Floats
    zone: Floats
    reach: Floats
    tone: Floats


def faceted(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Polyhedra drawn from the back to the front; edges and numbers of faces go through Pillow's polygons."""
    solid = solid_of(look.form, rng)
    crystals = sorted(_stand(look, site, rng), key=lambda c: c.depth)
    numbers, edges = (Image.new(mode, (site.size, site.size), 0) for mode in ("I", "L"))
    pens = ImageDraw.Draw(numbers), ImageDraw.Draw(edges)
    tables: list[_Faces] = []
    for rank, crystal in enumerate(crystals, 1):
        # Those behind are in the shade of those in front.
        tone = (0.76 + 0.24 * rank / len(crystals)) * rng.normal(1.0, 0.06)
        drawn = sum(len(table.tone) for table in tables)
        tables.append(_draw(solid, crystal, tone, pens, first=drawn + 1))
    return _looked_up(look, np.asarray(numbers), np.asarray(edges), _joined(tables))


def _draw(
    solid: Solid, crystal: _Crystal, tone: float, pens: tuple[ImageDraw.ImageDraw, ImageDraw.ImageDraw], first: int
) -> _Faces:
    """Paint every face that looks at the viewer with its number, counted from `first`."""
    local = solid.stretched(crystal.elongation)
    points = local @ crystal.frame * crystal.half + crystal.center
    spokes = points[solid.spokes]
    normal = _units(np.cross(spokes[:, 1] - spokes[:, 0], spokes[:, 2] - spokes[:, 0]))
    shown = np.flatnonzero(normal[:, 2] > 0.02)
    for number, face in enumerate(shown, first):
        outline = points[solid.faces[face], :2].ravel().tolist()
        pens[0].polygon(outline, fill=number)
        pens[1].polygon(outline, fill=0, outline=255)
    length = np.abs(local[:, 2]).max()
    center = solid.means[shown] @ points
    columns = (
        normal[shown],
        center,
        np.tile(crystal.frame[2] / (crystal.half * length), (len(shown), 1)),
        np.cross(normal[shown], solid.striae[shown] @ crystal.frame) / crystal.half,
        solid.means[shown] @ local[:, 2] / length,
        np.linalg.norm(spokes[shown] - center[:, None], axis=2).max(axis=1) + 1e-6,
        np.full(len(shown), tone),
    )
    return _Faces(*(column.astype(np.float32) for column in columns))


def _joined(tables: list[_Faces]) -> _Faces:
    return _Faces(*(np.concatenate([getattr(table, field.name) for table in tables]) for field in fields(_Faces)))


def _looked_up(look: Look, numbers: NDArray[np.int32], edges: Bytes, faces: _Faces) -> Surface:
    """From face numbers (H, W) to the surface of every covered pixel."""
    rows, columns = np.nonzero(numbers)
    face = numbers[rows, columns] - 1
    normal, center = faces.normal[face], faces.center[face]
    offset = np.empty_like(normal)
    offset[:, 0], offset[:, 1] = columns - center[:, 0], rows - center[:, 1]
    # The face's plane gives the depth.
    offset[:, 2] = -(normal[:, 0] * offset[:, 0] + normal[:, 1] * offset[:, 1]) / normal[:, 2]
    # Faces are a little domed: a perfectly flat one has a single color, which no crystal has.
    domed = normal + offset * (0.25 / faces.reach[face])[:, None]
    zone = 0.5 + 0.5 * (faces.zone[face] + _dot(offset, faces.axis[face]))
    line = np.sin(np.float32(np.pi * look.striae) * _dot(offset, faces.across[face]))
    edge = edges[rows, columns] * np.float32(1 / 255)
    return Surface(rows, columns, _units(domed), np.clip(zone, 0, 1), line, faces.tone[face], edge)


# --- How crystals stand together


def _stand(look: Look, site: Site, rng: np.random.Generator) -> list[_Crystal]:
    count = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    return _GROWTHS[look.growth](look, site, count, rng)


def _scattered(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Anyhow in a disc, the largest in the middle and in front."""
    width = 0.95 * site.radius / np.sqrt(count) * rng.uniform(0.75, 1.3, count)
    width[0] *= 1.25
    crystals = []
    for (x, y), half in zip(_disc(count, rng), width, strict=True):
        long = rng.uniform(*look.elongation)
        # A plate shows its face, not its edge.
        frame = _tilted(rng, least=0.15 if long >= 1 else 0.45)
        width_for_length = half / np.sqrt(max(long, 1.0))
        crystals.append(_Crystal(_at(site, x, y), frame, width_for_length, long, -float(np.hypot(x, y))))
    return crystals


def _druse(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Standing on the rock: axes lean outwards, and those in the middle come towards the viewer."""
    crystals = []
    for x, y in _disc(count, rng, reach=0.62):
        lean = np.array([1.3 * x, 1.3 * y - 0.25, 0.75]) + rng.normal(0, 0.25, 3)
        long = rng.uniform(*look.elongation)
        half = site.radius * rng.uniform(0.65, 1.0) / np.sqrt(count * long / 1.6)
        frame = _frame(_unit(lean), rng.uniform(0, 2 * np.pi))
        center = _at(site, x, y) + frame[2] * half * long * 0.35
        crystals.append(_Crystal(center, frame, half, long, float(y - np.hypot(x, y))))
    return crystals


def _spray(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Rays from one point, in a fan or all round."""
    main, opening = rng.uniform(0, 2 * np.pi), rng.uniform(1.6, 3.1)
    root = -0.25 * site.radius * np.array([np.cos(main), np.sin(main), 0.0]) * (opening < 2.4)
    crystals = []
    for turn in main + opening * np.linspace(-1, 1, count) + rng.normal(0, 0.12, count):
        axis = _unit(np.array([np.cos(turn), np.sin(turn), rng.uniform(0.0, 0.7)]))
        long = rng.uniform(*look.elongation)
        length = site.radius * rng.uniform(0.38, 0.55)
        center = _at(site, 0, 0) + root + axis * length * 0.9
        frame = _frame(axis, rng.uniform(0, 2 * np.pi))
        crystals.append(_Crystal(center, frame, length / long, long, float(axis[2])))
    return crystals


def _stack(look: Look, site: Site, count: int, rng: np.random.Generator) -> list[_Crystal]:
    """Leaf on leaf: nearly parallel plates that overlap."""
    leader = _tilted(rng, least=0.5)
    crystals = []
    for depth, (x, y) in enumerate(_disc(count, rng, reach=0.75)):
        frame = _orthonormal(leader + rng.normal(0, 0.2, (3, 3)))
        half = site.radius * rng.uniform(0.22, 0.36)
        crystals.append(_Crystal(_at(site, x, y), frame, half, rng.uniform(*look.elongation), float(depth)))
    return crystals


_GROWTHS: dict[str, Callable[[Look, Site, int, np.random.Generator], list[_Crystal]]] = {
    "scattered": _scattered,
    "druse": _druse,
    "spray": _spray,
    "stack": _stack,
}


_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))


def _disc(count: int, rng: np.random.Generator, reach: float = 0.72) -> Doubles:
    """(count, 2) places in a disc, evenly spread by the golden angle, the first in the middle."""
    order = np.arange(count)
    turn = order * _GOLDEN_ANGLE + rng.uniform(0, 2 * np.pi)
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


def _units(vectors: NDArray[_Real]) -> NDArray[_Real]:
    units = vectors.copy()
    units /= np.sqrt(_dot(vectors, vectors))[:, None]
    return units


def _dot(left: NDArray[_Real], right: NDArray[_Real]) -> NDArray[_Real]:
    """(P,) of two (P, 3)."""
    product: NDArray[_Real] = np.einsum("pi,pi->p", left, right)
    return product


# --- Surfaces without faces


def _botryoidal(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Grape-like spheres; the zone counts shells from each sphere's top."""
    count = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    grid = np.zeros((site.size, site.size), np.float32)
    zone, tone = np.zeros_like(grid), np.ones_like(grid)
    for x, y in _disc(count, rng, reach=0.78):
        radius = site.radius * rng.uniform(0.2, 0.34)
        center = _at(site, x, y)
        center[2] = site.radius * (0.5 - 0.5 * float(np.hypot(x, y)))
        _bulge(grid, zone, tone, center, radius, float(rng.normal(1.0, 0.05)))
    return _from_height(grid, grid > 0, zone, tone)


def _bulge(height: Floats, zone: Floats, tone: Floats, center: Doubles, radius: float, shade: float) -> None:
    """Raise a sphere above what is there, in place; what of it is outside the image is left out."""
    left, top = (max(0, int(c - radius)) for c in center[:2])
    right, bottom = (min(len(height), max(0, int(c + radius) + 2)) for c in center[:2])
    window = np.s_[top:bottom, left:right]
    rows, columns = np.mgrid[window]
    squared = ((rows - center[1]) ** 2 + (columns - center[0]) ** 2) / radius**2
    dome = center[2] + radius * np.sqrt(np.clip(1 - squared, 0, 1)) + 1
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
    hue = 0.5 + 0.5 * noise(site.size, rng, site.radius / 3.2)
    return _from_height(height, cover, hue, np.ones_like(height))


def _dendrite(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """Trees of metal: stems that fork, blurred into round wires."""
    drawing = Image.new("L", (site.size, site.size), 0)
    pen = ImageDraw.Draw(drawing)
    stems = int(rng.integers(look.crystals[0], look.crystals[1] + 1))
    for turn in rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi, stems, endpoint=False):
        _branch(pen, site.x, site.y, turn, site.radius * 0.42, 4, rng)
    soft = drawing.filter(ImageFilter.GaussianBlur(site.radius * 0.045))
    thickness = np.asarray(soft, np.float32) / np.float32(255)
    tone = 1 + 0.12 * noise(site.size, rng, site.radius / 6)
    return _from_height(np.float32(site.radius * 0.22) * thickness, thickness > 0.4, np.zeros_like(tone), tone)


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
    pen.line([(x, y), (end_x, end_y)], fill=255, width=max(2, round(length * 0.36)))
    for fork in (-0.9, 0.0, 0.9) if forks > 1 else ():
        _branch(pen, end_x, end_y, turn + fork, length * rng.uniform(0.5, 0.75), forks - 1, rng)


def _nodule(look: Look, site: Site, rng: np.random.Generator) -> Surface:
    """A polished slice: flat, with a rim; the zone runs from the heart to the rim."""
    radius = polar(site.size, _at(site, 0, 0), site.radius * 0.92, rng, 0.16)
    wavy = np.clip(radius + 0.06 * noise(site.size, rng, site.radius / 4), 0, 1)
    height = np.float32(site.radius * 0.25) * np.sqrt(np.clip(1 - radius**8, 0, 1))
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


def polar(size: int, center: Doubles, radius: float, rng: np.random.Generator, roughness: float) -> Floats:
    """(size, size): distance from the center over the radius of an irregular outline, 1 on the outline."""
    rows, columns = np.ogrid[:size, :size]
    dx, dy = (columns - center[0]).astype(np.float32), (rows - center[1]).astype(np.float32)
    turns = np.linspace(0, 2 * np.pi, 2049)
    waves = sum(rng.normal(0, roughness / k) * np.cos(k * turns + rng.uniform(0, 2 * np.pi)) for k in range(2, 8))
    angle = np.arctan2(dy, dx) * (2048 / (2 * np.pi)) + 1024
    outline = (radius * (1 + np.clip(waves, -0.3, 0.3))).astype(np.float32)
    distance: Floats = np.sqrt(dx * dx + dy * dy) / outline[angle.astype(np.intp)]
    return distance


def noise(size: int, rng: np.random.Generator, scale: float) -> Floats:
    """(size, size) smooth noise with features of about `scale` pixels, mostly within -1..1."""
    cells = max(2, round(size / max(scale, 1.0)) + 2)
    coarse = Image.fromarray(rng.normal(0, 0.55, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), np.float32)
