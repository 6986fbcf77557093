"""One image: a backdrop, a rock, one to six minerals on it, a lamp, a camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from mineral_batch.errors import OptionError
from mineral_batch.minerals import MINERALS
from mineral_train.synth.looks import LOOKS
from mineral_train.synth.shading import Light, shade
from mineral_train.synth.surfaces import Site, grow, noise, polar, slopes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_train.synth.solids import Doubles, Floats

Bytes = NDArray[np.uint8]

#: A mineral is a label when at least this share of the image shows it.
LEAST_VISIBLE = 0.005

#: Images with 1, 2, .. 6 labels in the paper's data (Wu et al. 2022, section 2).
LABELS_PER_PICTURE = (142_508, 34_619, 5_641, 809, 104, 7)

_BACKDROPS = (
    (18, 18, 20),
    (60, 62, 66),
    (126, 126, 128),
    (206, 206, 204),
    (238, 238, 238),
    (52, 62, 84),
    (120, 100, 82),
)
_ROCKS = ((150, 144, 136), (118, 108, 98), (92, 90, 90), (168, 152, 130), (132, 118, 112), (104, 98, 86))


@dataclass(frozen=True)
class Specimen:
    """An image with its truth.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8; k + 1 where mineral k of `MINERALS` is the one seen, 0 where none is.
        labels: the minerals that show on at least `LEAST_VISIBLE` of the image, in the order of `MINERALS`.
    """

    pixels: Bytes
    mask: Bytes
    labels: tuple[str, ...]


def generate(
    index: int,
    seed: int = 0,
    size: int = 384,
    *,
    max_minerals: int = 3,
    minerals: Sequence[str] = MINERALS,
    off_center: bool = False,
) -> Specimen:
    """Image `index` of the endless series `seed`; it depends on these arguments and on nothing else.

    The first mineral goes round `minerals` in a new random order every round, so that all are equally frequent;
    it stands in front and is always a label. How many join it follows the paper's counts.

    Args:
        index: 0, 1, 2, ...
        seed: of the series, 0 or above.
        size: width and height, pixels, at least 32.
        max_minerals: at most this many labels, 1 to 6.
        minerals: which may occur, names of `MINERALS`.
        off_center: the minerals anywhere in the image, also cut by its edge, and the rock somewhere else. By default
            they are on the rock in the middle, where photographers put them, and where a map of what a model looks at
            is right without knowing anything.

    Raises:
        DataError: for an unknown mineral or a number out of its range.
    """
    check(seed, size, max_minerals, minerals)
    rng = stream(seed, 0, index)
    chosen = _choose(index, seed, max_minerals, minerals, rng)
    light = Light.from_direction(np.array([rng.uniform(-0.9, 0.9), rng.uniform(-1.1, -0.4), rng.uniform(0.7, 1.2)]))
    canvas = _backdrop(size, rng)
    _rock(canvas, *(_place_anywhere(size, rng) if off_center else _place_in_the_middle(size, rng)), light, rng)
    sites = (_sites_anywhere if off_center else _sites_around_the_middle)(len(chosen), size, rng)
    mask = np.zeros((size, size), np.uint8)
    for mineral, site in zip(chosen, sites, strict=True):
        _place(canvas, mask, mineral, site, light, rng)
    labels = _visible(mask)
    return Specimen(_photographed(canvas, rng), mask, labels)


def stream(seed: int, *key: int) -> np.random.Generator:
    """Random numbers of their own for every key under one seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def check(seed: int, size: int, max_minerals: int, minerals: Sequence[str]) -> None:
    """Refuse what cannot be drawn.

    Raises:
        OptionError: naming the value and what is allowed.
    """
    unknown = sorted(set(minerals) - set(MINERALS))
    if unknown or not minerals:
        wrong = f"unknown minerals {', '.join(unknown)}" if unknown else "no minerals were named"
        raise OptionError(f"{wrong}; known are {', '.join(MINERALS)}")
    if seed < 0:
        raise OptionError(f"seed must be 0 or above, got {seed}")
    if not 1 <= max_minerals <= len(LABELS_PER_PICTURE):
        raise OptionError(f"max-minerals must be 1 to {len(LABELS_PER_PICTURE)}, got {max_minerals}")
    if not 32 <= size <= 4096:
        raise OptionError(f"size must be 32 to 4096 pixels, got {size}")


def turn_of(index: int, seed: int, minerals: Sequence[str]) -> tuple[int, str]:
    """Which round image `index` is in, and the mineral whose turn it is."""
    turn, position = divmod(index, len(minerals))
    order = stream(seed, 1, turn).permutation(len(minerals))
    return turn, minerals[order[position]]


def _choose(index: int, seed: int, max_minerals: int, minerals: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The minerals from the back to the front: the one whose turn it is comes last."""
    most = min(max_minerals, len(minerals))
    share = np.array(LABELS_PER_PICTURE[:most], np.float64)
    count = int(rng.choice(most, p=share / share.sum()))
    _, first = turn_of(index, seed, minerals)
    others = [m for m in minerals if m != first]
    return [others[i] for i in rng.permutation(len(others))[:count]] + [first]


def _sites_around_the_middle(count: int, size: int, rng: np.random.Generator) -> list[Site]:
    """Places on the rock, apart from each other; the more there are, the smaller each is."""
    radius = size * rng.uniform(0.26, 0.35) * (1.0, 0.76, 0.66, 0.56, 0.50, 0.46)[count - 1]
    away = size * (0.0, 0.19, 0.22, 0.24, 0.26, 0.27)[count - 1]
    turns = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count
    shift = rng.normal(0, 0.025, (count, 2)) * size
    middle = size / 2
    return [
        Site(middle + away * np.cos(t) + dx, middle + away * np.sin(t) + dy, radius, size)
        for t, (dx, dy) in zip(turns, shift, strict=True)
    ]


def _sites_anywhere(count: int, size: int, rng: np.random.Generator) -> list[Site]:
    """Places apart from each other, up to where the image's edge cuts a specimen; the more, the smaller each is."""
    radius = size * rng.uniform(0.17, 0.23) * (1.0, 1.0, 0.9, 0.8, 0.7, 0.65)[count - 1]
    sites: list[Site] = []
    for _ in range(count):
        tried = rng.uniform(0.6 * radius, size - 0.6 * radius, (64, 2))
        gaps = [np.hypot(*(tried - (other.x, other.y)).T) for other in sites]
        # The first that is clear of all others; where there is none, the one farthest from them.
        nearest = np.minimum.reduce([np.full(len(tried), 2 * radius), *gaps])
        x, y = tried[nearest.argmax()]
        sites.append(Site(float(x), float(y), radius, size))
    return sites


def _place(canvas: Floats, mask: Bytes, mineral: str, site: Site, light: Light, rng: np.random.Generator) -> None:
    """Draw one group onto the canvas (H, W, 3) and into the mask (H, W), in place."""
    surface = grow(LOOKS[mineral], site, rng)
    cover = np.zeros(mask.shape, np.uint8)
    cover[surface.rows, surface.columns] = 255
    _cast_shadow(canvas, cover, light, site.radius * 0.12)
    under = canvas[surface.rows, surface.columns]
    canvas[surface.rows, surface.columns] = shade(surface, LOOKS[mineral], light, under, rng)
    mask[surface.rows, surface.columns] = MINERALS.index(mineral) + 1


def _cast_shadow(canvas: Floats, cover: Bytes, light: Light, height: float) -> None:
    """Darken the canvas where something `height` pixels high stands in the light; soft edges."""
    shift = -light.direction[:2] / light.direction[2] * height
    moved = Image.fromarray(cover).transform(
        cover.shape[::-1], Image.Transform.AFFINE, (1, 0, -float(shift[0]), 0, 1, -float(shift[1]))
    )
    soft = np.asarray(moved.filter(ImageFilter.BoxBlur(height * 0.5)), np.float32)
    canvas *= (1 - soft * (0.5 / 255))[..., None]


def _backdrop(size: int, rng: np.random.Generator) -> Floats:
    """(size, size, 3): paper, cloth or board, lit from one side."""
    color = np.array(_BACKDROPS[rng.integers(len(_BACKDROPS))]) * rng.normal(1, 0.08) + rng.normal(0, 4, 3)
    rise = np.linspace(-1, 1, size, dtype=np.float32)
    fall = 1 + rng.uniform(-0.18, 0.18) * rise[:, None] + rng.uniform(-0.18, 0.18) * rise[None, :]
    fall = fall + rng.uniform(0, 0.06) * noise(size, rng, size / rng.uniform(4, 30))
    cloth: Floats = np.clip(fall[..., None] * color, 4, 250).astype(np.float32)
    return cloth


def _place_in_the_middle(size: int, rng: np.random.Generator) -> tuple[Doubles, float]:
    """Middle and radius of a rock that carries all minerals."""
    middle = size * (0.5 + rng.normal(0, 0.015, 2))
    return middle, size * rng.uniform(0.36, 0.45)


def _place_anywhere(size: int, rng: np.random.Generator) -> tuple[Doubles, float]:
    """Of a smaller rock that may lie beside them."""
    middle = size * rng.uniform(0.1, 0.9, 2)
    return middle, size * rng.uniform(0.18, 0.36)


def _rock(canvas: Floats, middle: Doubles, reach: float, light: Light, rng: np.random.Generator) -> None:
    """Draw a dull, rough piece of rock of a radius of `reach` pixels, in place."""
    size = canvas.shape[0]
    radius = polar(size, middle, reach, rng, 0.16)
    grain = noise(size, rng, size / 60)
    height = size * 0.16 * np.sqrt(np.clip(1 - radius**4, 0, 1)) + size * 0.022 * noise(size, rng, size / 12)
    lamp = np.clip(slopes(height + size * 0.004 * grain) @ light.direction, 0, 1)
    cover = radius < 1
    _cast_shadow(canvas, (cover * np.uint8(255)), light, size * 0.04)
    color = np.array(_ROCKS[rng.integers(len(_ROCKS))]) * rng.normal(1, 0.1) + rng.normal(0, 4, 3)
    texture = (0.38 + 0.62 * lamp) * (1 + 0.08 * grain + 0.1 * noise(size, rng, size / 7))
    canvas[cover] = texture[cover][:, None] * color.astype(np.float32)


def _visible(mask: Bytes) -> tuple[str, ...]:
    """The labels; what shows on less than `LEAST_VISIBLE` is taken out of the mask, in place."""
    counts = np.bincount(mask.ravel(), minlength=len(MINERALS) + 1)
    slivers = (counts > 0) & (counts < LEAST_VISIBLE * mask.size)
    slivers[0] = False
    mask[slivers[mask]] = 0
    return tuple(m for k, m in enumerate(MINERALS, 1) if counts[k] and not slivers[k])


def _photographed(canvas: Floats, rng: np.random.Generator) -> Bytes:
    """Exposure, white balance, the lens's softness, the sensor's noise."""
    gain = (rng.normal(1.0, 0.05) * rng.normal(1.0, 0.015, 3)).astype(np.float32)
    exposed = Image.fromarray(np.clip(canvas * gain, 0, 255).astype(np.uint8))
    lens = np.asarray(exposed.filter(ImageFilter.BoxBlur(canvas.shape[0] / 384 * rng.uniform(0.5, 0.8))), np.float32)
    sensor = rng.standard_normal(canvas.shape[:2], dtype=np.float32)[..., None] * np.float32(rng.uniform(1.0, 3.5))
    return np.clip(lens + sensor, 0, 255).astype(np.uint8)
