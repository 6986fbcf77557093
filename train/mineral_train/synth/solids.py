"""Crystals as the intersection of half-spaces, the way crystallography describes them (Wulff's construction).

A form is a set of faces, each a normal and a distance from the center; the crystal is what all of them leave. Moving
the distances a little gives the unequal faces of a grown crystal, with every angle still right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Solid:
    """A convex polyhedron about the origin; its long axis is z.

    Attributes:
        vertices: (V, 3) float64.
        faces: per face the indices of its vertices, counter-clockwise from outside.
        striae: (F, 3) float64, the direction of the growth lines on each face.
        prismatic: whether every face is parallel to z or belongs to one end.
    """

    vertices: Doubles
    faces: tuple[NDArray[np.intp], ...]
    striae: Doubles
    prismatic: bool

    @cached_property
    def spokes(self) -> NDArray[np.intp]:
        """(F, 3) the first, second and last vertex of every face: two edges that span it."""
        return np.array([(face[0], face[1], face[-1]) for face in self.faces])

    @cached_property
    def means(self) -> Doubles:
        """(F, V) weights that average the vertices of every face."""
        weights = np.zeros((len(self.faces), len(self.vertices)))
        for row, face in zip(weights, self.faces, strict=True):
            row[face] = 1 / len(face)
        return weights

    def stretched(self, elongation: float) -> Doubles:
        """The vertices (V, 3) of a longer or flatter crystal.

        A prism grows longer by moving its ends apart, which keeps the angles of its end faces.
        """
        points = self.vertices.copy()
        if self.prismatic and elongation > 1:
            points[:, 2] += np.sign(points[:, 2]) * (elongation - 1)
        else:
            points[:, 2] *= elongation
        return points


# Of a body of about unit size; corners are exact to a millionth.
_SHORTEST_EDGE = 5e-5


def solid_of(form: str, rng: np.random.Generator, unevenness: float = 0.07) -> Solid:
    """One crystal of a form, its faces moved by `unevenness` (standard deviation, fraction of the distance).

    Raises:
        KeyError: for a form that is not in the table of faces.
    """
    normals, distances = FACES[form]
    moved = distances * np.clip(rng.normal(1.0, unevenness, len(distances)), 0.85, 1.15)
    return intersect(normals, moved)


def intersect(normals: Doubles, distances: Doubles) -> Solid:
    """The polyhedron {x : normals @ x <= distances}.

    Args:
        normals: (F, 3) unit vectors that close a bounded body.
        distances: (F,) above 0.
    """
    corners, on_face = _corners(normals, distances)
    shown = np.flatnonzero(on_face.sum(axis=0) >= 3)
    faces = tuple(_counter_clockwise(corners, np.flatnonzero(on_face[:, f]), normals[f]) for f in shown)
    lines = np.array([_stria_direction(normals[f]) for f in shown])
    upright = np.abs(normals[shown, 2]) < 1e-9
    one_end = [abs(np.sign(corners[face, 2]).sum()) == len(face) for face in faces]
    return Solid(corners, faces, lines, prismatic=bool((upright | one_end).all()))


def _corners(normals: Doubles, distances: Doubles) -> tuple[Doubles, NDArray[np.bool_]]:
    """Where three faces meet inside all others: corners (V, 3), and which faces each lies on (V, F)."""
    triples = np.array(list(combinations(range(len(normals)), 3)))
    systems = normals[triples]
    solvable = np.abs(np.linalg.det(systems)) > 1e-6
    points = np.linalg.solve(systems[solvable], distances[triples[solvable]][..., None])[..., 0]
    inside = points[(points @ normals.T <= distances + 1e-7).all(axis=1)]
    corners = np.unique(inside.round(6), axis=0)
    return _merged(corners, np.abs(corners @ normals.T - distances) < 3e-6)


def _merged(corners: Doubles, on_face: NDArray[np.bool_]) -> tuple[Doubles, NDArray[np.bool_]]:
    """Make one corner of those at the ends of an edge too short to see, on all faces that they lie on.

    Otherwise rounding decides for each face by itself which of them it has, and the body is not closed.
    """
    near = np.linalg.norm(corners[:, None] - corners[None], axis=2) < _SHORTEST_EDGE
    first = np.arange(len(corners))
    while not np.array_equal(first, lower := np.where(near, first, len(corners)).min(axis=1)):
        first = lower
    kept = np.unique(first)
    return corners[kept], np.array([on_face[first == corner].any(axis=0) for corner in kept])


def _counter_clockwise(corners: Doubles, ring: NDArray[np.intp], normal: Doubles) -> NDArray[np.intp]:
    """The corners of one face in order around its normal."""
    across = _perpendicular(normal)
    spokes = corners[ring] - corners[ring].mean(axis=0)
    return ring[np.argsort(np.arctan2(spokes @ np.cross(normal, across), spokes @ across))]


def _perpendicular(normal: Doubles) -> Doubles:
    across = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    unit: Doubles = across / np.linalg.norm(across)
    return unit


def _stria_direction(normal: Doubles) -> Doubles:
    """Along the axis on a prism's faces; on a cube each face's lines stand across its neighbors', as in pyrite."""
    steepest = int(np.abs(normal).argmax())
    cubic = abs(normal[steepest]) > 0.999
    direction: Doubles = np.eye(3)[(steepest + 1) % 3 if cubic else 2]
    return direction


def _faces(*forms: tuple[Doubles, float]) -> tuple[Doubles, Doubles]:
    """Join forms: each a set of face normals (K, 3), and their common distance."""
    normals = np.concatenate([n / np.linalg.norm(n, axis=1, keepdims=True) for n, _ in forms])
    distances = np.concatenate([np.full(len(n), d) for n, d in forms])
    return normals, distances


def _cubic(h: int, k: int, m: int) -> Doubles:
    """All faces {hkl} of the cubic holohedry: every permutation and sign."""
    signed = {
        tuple(s * i for s, i in zip(signs, p, strict=True))
        for p in permutations((h, k, m))
        for signs in product((1, -1), repeat=3)
    }
    return np.array(sorted(signed), dtype=np.float64)


def _prism(sides: int, start: float = 0.0) -> Doubles:
    """Faces parallel to z."""
    angle = start + 2 * np.pi * np.arange(sides) / sides
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(sides)], axis=1)


def _pyramid(sides: int, slope: float, start: float = 0.0, ends: tuple[int, ...] = (1, -1)) -> Doubles:
    """Faces leaning over z at both ends; `slope` is the normal's z for a unit of its x, y."""
    ring = _prism(sides, start)
    return np.concatenate([ring + np.array([0.0, 0.0, end * slope]) for end in ends])


_PINACOID = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
_RHOMB = np.array([[0.85, 0.53, 0.0], [-0.85, 0.53, 0.0], [0.85, -0.53, 0.0], [-0.85, -0.53, 0.0]])
_TETRAHEDRON = np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
_SIDES = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]])


def _rhombic(slope: float) -> Doubles:
    lean = np.array([0.0, 0.0, slope])
    return np.concatenate([_RHOMB + lean, _RHOMB - lean])


#: Per form (normals (F, 3), distances (F,)). Bodies are about one unit across; growth stretches them along z.
FACES: dict[str, tuple[Doubles, Doubles]] = {
    "cube": _faces((_cubic(1, 0, 0), 1.0)),
    "cuboctahedron": _faces((_cubic(1, 0, 0), 1.0), (_cubic(1, 1, 1), 1.57)),
    "octahedron": _faces((_cubic(1, 1, 1), 0.75)),
    "dodecahedron": _faces((_cubic(1, 1, 0), 1.0)),
    "trapezohedron": _faces((_cubic(2, 1, 1), 1.0)),
    "tetrahedron": _faces((_TETRAHEDRON, 0.62), (-_TETRAHEDRON, 1.3)),
    # Three-fold faces at the angle of the rhombohedral carbonates' cleavage form.
    "rhombohedron": _faces((np.concatenate([_pyramid(3, 1.02, 0.0, (1,)), _pyramid(3, 1.02, np.pi, (-1,))]), 0.85)),
    "hexagonal-pointed": _faces((_prism(6), 0.8), (_pyramid(6, 0.55), 1.15)),
    "hexagonal-flat": _faces((_prism(6), 0.85), (_PINACOID, 1.0)),
    "hexagonal-barrel": _faces((_pyramid(6, 0.28), 0.85), (_PINACOID, 1.0)),
    # Tourmaline: a triangle with its corners cut, and a low three-sided cap.
    "trigonal-prism": _faces((_prism(3), 0.6), (_prism(3, np.pi), 0.95), (_pyramid(3, 3.0), 1.05)),
    "square-pointed": _faces((_prism(4, np.pi / 4), 0.85), (_pyramid(4, 0.9, np.pi / 4), 0.95)),
    "square-plate": _faces((_prism(4), 1.0), (_PINACOID, 1.0), (_pyramid(4, 1.0), 1.3)),
    "square-prism": _faces((_prism(4), 0.8), (_prism(4, np.pi / 4), 1.0),
                           (np.array([[0.3, 0, 1], [-0.3, 0, -1]]), 1.0)),
    "rhombic-domed": _faces((_RHOMB, 0.72), (_rhombic(1.2), 1.02), (_PINACOID, 1.08)),
    "rhombic-dipyramid": _faces((_rhombic(0.85), 0.72), (_PINACOID, 0.98)),
    "rhombic-tablet": _faces((_RHOMB, 0.9), (_PINACOID, 1.0), (_rhombic(0.9), 1.2)),
    "monoclinic-prism": _faces((_SIDES, 0.62), (_RHOMB, 0.72), (np.array([[0.9, 0, 1], [-0.9, 0, -1]]), 1.0),
                               (np.array([[-0.8, 0.4, 1], [0.8, -0.4, -1]]), 1.1)),
    "blade": _faces((_SIDES[:2], 0.9), (_SIDES[2:], 0.13), (np.array([[0.4, 0, 1], [-0.4, 0, -1]]), 1.0)),
    "spear": _faces((_SIDES[2:], 0.22), (_SIDES[:2], 0.8), (_pyramid(2, 0.7), 0.75)),
}  # fmt: skip
