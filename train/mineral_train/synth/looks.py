"""What each of the 36 minerals looks like: the one table that the generator draws from.

Colors, habits and lusters are those of the standard descriptions (Anthony et al., Handbook of Mineralogy; Klein
and Dutrow, Manual of Mineral Science), narrowed to the variety that collectors photograph most. A mineral that has
many colors in nature (fluorite, beryl, quartz) keeps one or two here, so that color and habit together tell all
36 apart: these are cartoons for testing a pipeline, not training data for real photographs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Color = tuple[int, int, int]

#: The solid of one crystal (`solids.planes_of`), or a surface without faces (`surfaces.rounded`).
Form = Literal[
    "cube", "cuboctahedron", "octahedron", "dodecahedron", "trapezohedron", "tetrahedron", "rhombohedron",
    "hexagonal-pointed", "hexagonal-flat", "hexagonal-barrel", "trigonal-prism", "square-pointed", "square-plate",
    "square-prism", "rhombic-domed", "rhombic-dipyramid", "rhombic-tablet", "monoclinic-prism", "blade", "spear",
    "botryoidal", "nugget", "dendrite", "nodule",
]  # fmt: skip
#: How the crystals of one group stand: anyhow, grown outwards from the rock, sprayed from a point, leaf on leaf.
Growth = Literal["scattered", "druse", "spray", "stack"]
Luster = Literal["metallic", "adamantine", "vitreous", "resinous", "pearly", "silky", "waxy"]
#: Where `second` shows: nowhere, in bands, from one end of the crystal to the other, as tarnish, as play of color.
Pattern = Literal["plain", "banded", "axial", "tarnished", "opalescent"]


@dataclass(frozen=True)
class Look:
    """How one mineral is drawn.

    Attributes:
        note: the mineral in words, as a field guide would put it.
        colors: sRGB, the varieties; one group of crystals has one of them.
        form: the shape of one crystal.
        luster: how light comes back from a face.
        growth: how crystals stand together.
        opacity: 1 hides what is behind, 0.4 is clear glass.
        crystals: fewest and most in a group.
        elongation: shortest and longest ratio of length along the crystal's axis to its width.
        striae: lines across one face, 0 for smooth faces.
        pattern: where the second color shows.
        second: sRGB of the bands, of the other end, of the tarnish.
    """

    note: str
    colors: tuple[Color, ...]
    form: Form
    luster: Luster
    growth: Growth = "scattered"
    opacity: float = 1.0
    crystals: tuple[int, int] = (8, 14)
    elongation: tuple[float, float] = (1.0, 1.0)
    striae: float = 0.0
    pattern: Pattern = "plain"
    second: Color = (255, 255, 255)


LOOKS: dict[str, Look] = {
    "agate": Look(
        "cut nodule, concentric bands of red-brown and white chalcedony",
        ((176, 74, 40), (148, 92, 70)), "nodule", "waxy", crystals=(1, 1), pattern="banded", second=(243, 232, 220),
    ),
    "albite": Look(
        "snow-white bladed rosettes (cleavelandite)",
        ((238, 237, 233),), "blade", "pearly", "spray", crystals=(22, 34), elongation=(2.2, 3.2),
    ),
    "almandine": Look(
        "wine-red to brown rhombic dodecahedra, deep and dark",
        ((104, 18, 30), (92, 22, 22)), "dodecahedron", "vitreous", opacity=0.95, crystals=(5, 9),
    ),
    "anglesite": Look(
        "honey-yellow tablets, brilliant, transparent",
        ((248, 230, 140),), "rhombic-tablet", "adamantine", opacity=0.72, crystals=(7, 12), elongation=(0.4, 0.6),
    ),
    "azurite": Look(
        "azure to midnight-blue thick monoclinic prisms",
        ((18, 44, 168), (14, 32, 130)), "monoclinic-prism", "vitreous", "druse", crystals=(14, 22),
        elongation=(1.3, 1.9),
    ),
    "beryl": Look(
        "six-sided prisms with a flat end, aquamarine",
        ((112, 204, 206), (92, 190, 190)), "hexagonal-flat", "vitreous", "druse", opacity=0.72, crystals=(4, 7),
        elongation=(2.6, 3.8),
    ),
    "cassiterite": Look(
        "brown-black stout tetragonal prisms with pyramids, brilliant",
        ((62, 42, 30), (50, 38, 32)), "square-pointed", "adamantine", crystals=(7, 12), elongation=(1.0, 1.3),
    ),
    "chalcopyrite": Look(
        "deep brass-yellow sphenoids with a blue and purple tarnish",
        ((190, 140, 44),), "tetrahedron", "metallic", crystals=(9, 15), pattern="tarnished", second=(88, 58, 168),
    ),
    "cinnabar": Look(
        "scarlet rhombohedral crystals",
        ((214, 22, 24), (196, 26, 18)), "rhombohedron", "adamantine", opacity=0.97, crystals=(16, 26),
        elongation=(1.1, 1.5),
    ),
    "copper": Look(
        "copper-red branching dendrites",
        ((204, 108, 66),), "dendrite", "metallic", crystals=(4, 6),
    ),
    "demantoid": Look(
        "vivid yellow-green garnet, trapezohedra with fire",
        ((128, 186, 30), (104, 170, 32)), "trapezohedron", "adamantine", opacity=0.9, crystals=(8, 14),
    ),
    "diopside": Look(
        "dark bottle-green stubby square prisms",
        ((22, 82, 46),), "square-prism", "vitreous", opacity=0.95, crystals=(5, 9), elongation=(1.4, 2.0),
    ),
    "elbaite": Look(
        "slender striated three-sided prisms, pink at one end and green at the other",
        ((232, 84, 150),), "trigonal-prism", "vitreous", "druse", opacity=0.85, crystals=(6, 10),
        elongation=(3.4, 4.8), striae=5.0, pattern="axial", second=(66, 168, 96),
    ),
    "epidote": Look(
        "pistachio to olive-brown striated prisms in sprays",
        ((104, 112, 22), (90, 92, 20)), "monoclinic-prism", "vitreous", "spray", crystals=(14, 22),
        elongation=(4.0, 6.0), striae=5.0,
    ),
    "fluorite": Look(
        "translucent cubes, purple",
        ((128, 66, 190), (112, 72, 202)), "cube", "vitreous", opacity=0.78, crystals=(5, 9),
    ),
    "galena": Look(
        "lead-gray cubes with corners cut, mirror-bright",
        ((128, 136, 152),), "cuboctahedron", "metallic", crystals=(6, 10),
    ),
    "gold": Look(
        "rich yellow hackly nuggets",
        ((255, 196, 40),), "nugget", "metallic", crystals=(4, 7),
    ),
    "halite": Look(
        "clear rose-tinted cubes",
        ((248, 202, 196), (248, 212, 204)), "cube", "vitreous", opacity=0.82, crystals=(7, 11),
    ),
    "hematite": Look(
        "kidney ore, dark red-gray shining botryoids",
        ((110, 52, 50), (98, 46, 48)), "botryoidal", "metallic", crystals=(16, 28),
    ),
    "magnetite": Look(
        "iron-black octahedra",
        ((44, 46, 52),), "octahedron", "metallic", crystals=(7, 12),
    ),
    "malachite": Look(
        "green botryoids, banded light and dark",
        ((16, 128, 78), (12, 112, 70)), "botryoidal", "silky", crystals=(14, 24), pattern="banded",
        second=(112, 206, 150),
    ),
    "marcasite": Look(
        "pale tin-yellow cockscombs of spear-shaped twins",
        ((206, 204, 160),), "spear", "metallic", "spray", crystals=(16, 26), elongation=(1.6, 2.4),
    ),
    "opal": Look(
        "milky mass with a play of all colors",
        ((222, 230, 236),), "nugget", "waxy", crystals=(1, 2), pattern="opalescent",
    ),
    "orpiment": Look(
        "golden-orange foliated masses, leaf on leaf",
        ((255, 190, 20), (252, 178, 16)), "rhombic-tablet", "pearly", "stack", crystals=(24, 34),
        elongation=(0.08, 0.14), striae=7.0,
    ),
    "pyrite": Look(
        "brass-yellow cubes, each face striated at right angles to the next",
        ((206, 180, 104),), "cube", "metallic", crystals=(4, 8), striae=7.0,
    ),
    "quartz": Look(
        "colorless six-sided prisms with pyramid ends",
        ((232, 238, 244),), "hexagonal-pointed", "vitreous", "druse", opacity=0.62, crystals=(7, 12),
        elongation=(2.2, 3.4),
    ),
    "rhodochrosite": Look(
        "rose-pink rhombohedra",
        ((240, 98, 118), (236, 112, 124)), "rhombohedron", "vitreous", opacity=0.92, crystals=(5, 9),
    ),
    "ruby": Look(
        "crimson flat six-sided tablets",
        ((188, 8, 76), (172, 10, 66)), "hexagonal-flat", "adamantine", opacity=0.93, crystals=(5, 8),
        elongation=(0.4, 0.6),
    ),
    "sapphire": Look(
        "cornflower-blue six-sided barrels",
        ((82, 124, 226), (74, 112, 214)), "hexagonal-barrel", "adamantine", opacity=0.85, crystals=(5, 8),
        elongation=(1.5, 2.2),
    ),
    "schorl": Look(
        "black three-sided prisms, strongly striated",
        ((26, 26, 30),), "trigonal-prism", "vitreous", "druse", crystals=(8, 13), elongation=(3.0, 4.4), striae=6.0,
    ),
    "sphalerite": Look(
        "honey-brown to red-brown tetrahedra, resinous",
        ((156, 74, 18), (138, 62, 16)), "tetrahedron", "resinous", opacity=0.93, crystals=(8, 13),
    ),
    "stibnite": Look(
        "steel-gray sprays of long needles, striated lengthwise",
        ((146, 152, 166),), "monoclinic-prism", "metallic", "spray", crystals=(30, 44), elongation=(9.0, 13.0),
        striae=2.0,
    ),
    "sulfur": Look(
        "bright lemon-yellow rhombic dipyramids",
        ((250, 236, 22), (244, 226, 30)), "rhombic-dipyramid", "resinous", opacity=0.95, crystals=(8, 13),
        elongation=(1.5, 1.9),
    ),
    "topaz": Look(
        "sherry-colored rhombic prisms with a domed end",
        ((250, 204, 160), (246, 196, 148)), "rhombic-domed", "vitreous", "druse", opacity=0.75, crystals=(4, 7),
        elongation=(1.6, 2.3),
    ),
    "torbernite": Look(
        "grass-green thin square plates, stacked",
        ((42, 196, 52), (36, 180, 60)), "square-plate", "pearly", "stack", opacity=0.95, crystals=(12, 20),
        elongation=(0.12, 0.18),
    ),
    "wulfenite": Look(
        "orange-red thin square plates with beveled edges",
        ((244, 104, 10), (238, 88, 10)), "square-plate", "adamantine", opacity=0.88, crystals=(9, 15),
        elongation=(0.12, 0.2),
    ),
}  # fmt: skip
