"""Light on a surface: from normals and a mineral's luster to color."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mineral_train.synth.surfaces import noise

if TYPE_CHECKING:
    from mineral_train.synth.looks import Look, Luster
    from mineral_train.synth.solids import Doubles, Floats
    from mineral_train.synth.surfaces import Surface


@dataclass(frozen=True)
class Light:
    """One lamp far away and an even sky.

    Attributes:
        direction: (3,) unit vector towards the lamp; y points down, z to the viewer.
        halfway: (3,) unit vector between the lamp and the viewer (Blinn's highlight).
    """

    direction: Floats
    halfway: Floats

    @classmethod
    def from_direction(cls, direction: Doubles) -> Light:
        """A lamp in a direction of any length."""
        unit = direction / np.linalg.norm(direction)
        half = unit + np.array([0.0, 0.0, 1.0])
        return cls(unit.astype(np.float32), (half / np.linalg.norm(half)).astype(np.float32))


@dataclass(frozen=True)
class _Gloss:
    """Blinn-Phong terms of one luster; `mirror` is how far the reflected room shows, `tinted` colors highlights."""

    sky: float
    lamp: float
    highlight: float
    sharpness: float
    mirror: float
    edge: float
    tinted: bool = False


_GLOSS: dict[Luster, _Gloss] = {
    "metallic": _Gloss(0.46, 0.52, 0.75, 10, 0.24, 0.10, tinted=True),
    "adamantine": _Gloss(0.50, 0.62, 0.85, 22, 0.16, 0.20),
    "vitreous": _Gloss(0.52, 0.64, 0.55, 34, 0.07, 0.18),
    "resinous": _Gloss(0.50, 0.64, 0.40, 14, 0.05, 0.08),
    "pearly": _Gloss(0.56, 0.56, 0.28, 8, 0.04, -0.12),
    "silky": _Gloss(0.48, 0.55, 0.28, 7, 0.0, 0.0),
    "waxy": _Gloss(0.55, 0.46, 0.22, 18, 0.0, 0.0),
}


def shade(surface: Surface, look: Look, light: Light, under: Floats, rng: np.random.Generator) -> Floats:
    """The color of every covered pixel.

    Args:
        surface: P covered pixels.
        look: the mineral.
        light: the image's lamp.
        under: (P, 3) what lies behind, 0..255; shows through where the mineral is clear.
        rng: chooses the variety and its small deviations.

    Returns:
        (P, 3) float32, about 0..255.
    """
    gloss = _GLOSS[look.luster]
    body = _body(surface, look, rng)
    normal = surface.normal
    lit = gloss.sky + gloss.lamp * np.clip(normal @ light.direction, 0, 1) + gloss.mirror * _room(normal)
    lit *= surface.tone * (1 + 0.16 * surface.line)
    shine = gloss.highlight * np.clip(normal @ light.halfway, 0, 1) ** gloss.sharpness + gloss.edge * surface.edge
    glow = body * 0.6 + 102 if gloss.tinted else np.full_like(body, 255)
    color: Floats = _through(body * lit[:, None], body, look, normal, under) + shine[:, None] * glow
    return color


def _room(normal: Floats) -> Floats:
    """What a mirror sees: a bright window above, a dark floor, and a band between."""
    room: Floats = np.sin(5.0 * normal[:, 1] - 2.5 * normal[:, 0] + 0.6)
    return room


def _through(solid: Floats, body: Floats, look: Look, normal: Floats, under: Floats) -> Floats:
    """Mix in what lies behind, tinted; steep faces reflect and hide more (Schlick's approximation)."""
    if look.opacity >= 1:
        return solid
    opacity = look.opacity + (1 - look.opacity) * 0.7 * (1 - normal[:, 2:]) ** 2
    # Light that went in elsewhere comes out here: a clear crystal is brighter than the rock behind it.
    behind = (0.7 / 255) * under * body + 0.35 * body
    mixed: Floats = opacity * solid + (1 - opacity) * behind
    return mixed


def _body(surface: Surface, look: Look, rng: np.random.Generator) -> Floats:
    """(P, 3) the mineral's own color before light."""
    variety = np.array(look.colors[rng.integers(len(look.colors))], np.float64)
    base = np.clip(variety * rng.normal(1.0, 0.05) * rng.normal(1.0, 0.02, 3), 0, 255).astype(np.float32)
    if look.pattern == "plain":
        return np.broadcast_to(base, (len(surface.rows), 3))
    if look.pattern == "opalescent":
        return _play_of_color(surface, base, rng)
    share = _PATTERNS[look.pattern](surface, rng)[:, None]
    mixed: Floats = base + share * (np.array(look.second, np.float32) - base)
    return mixed


def _bands(surface: Surface, rng: np.random.Generator) -> Floats:
    """Bands of unequal width: two waves of the zone."""
    count = rng.uniform(4.0, 6.0)
    wave = np.sin(2 * np.pi * count * surface.zone) + 0.5 * np.sin(2 * np.pi * 2.3 * count * surface.zone + 1.0)
    bands: Floats = np.clip(0.4 + 0.75 * wave, 0, 1)
    return bands


def _ends(surface: Surface, rng: np.random.Generator) -> Floats:
    """From the first color at one end to the second at the other, with a clear border between."""
    ends: Floats = np.clip((rng.uniform(0.42, 0.58) - surface.zone) * 5 + 0.5, 0, 1)
    return ends


def _tarnish(surface: Surface, rng: np.random.Generator) -> Floats:
    size = int(max(surface.rows.max(), surface.columns.max())) + 1
    patches = noise(size, rng, size / 14)[surface.rows, surface.columns]
    tarnish: Floats = np.clip(0.25 + 1.1 * patches, 0, 0.85)
    return tarnish


_PATTERNS = {"banded": _bands, "axial": _ends, "tarnished": _tarnish}


def _play_of_color(surface: Surface, base: Floats, rng: np.random.Generator) -> Floats:
    """Patches of pure color that come and go in a milky body, as in precious opal."""
    size = int(max(surface.rows.max(), surface.columns.max())) + 1
    place = (surface.rows, surface.columns)
    hue = np.floor(6 * noise(size, rng, size / 20)[place] + 6 * surface.zone) * 1.1
    flash = np.stack([np.cos(hue + shift) for shift in (0.0, 2.1, 4.2)], axis=1) * 127 + 128
    share = 0.8 * np.clip(0.3 + 1.2 * noise(size, rng, size / 18)[place], 0, 1)[:, None]
    played: Floats = base + share * (flash - base)
    return played.astype(np.float32)
