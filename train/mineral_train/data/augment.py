"""Random variations of training images: crop, mirror image, upside down, brightness and contrast, RandAugment."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import DataError
from mineral_batch.images.geometry import resize
from mineral_batch.model.contract import InputSpec
from mineral_batch.types import Pixels

_MAX_MARGIN = 2.0  # beyond twice the input's size, decoding costs more than the detail that a crop gains


@dataclass(frozen=True)
class Augment:
    """How to vary training images, in this order: crop, mirror image, upside down, contrast and brightness, policy.

    Attributes:
        policy: timm's RandAugment configuration (Cubuk et al. 2020); empty for none. The paper names RandAugment
            without settings. `rand-m9-mstd0.5`, timm's usual one: 2 operations of 15, each applied with
            probability 0.5 at magnitude 9 of 10 (sd 0.5).
        flip: probability of the mirror image. Left and right mean nothing in a specimen.
        crop: (smallest, largest) share of the image's area that a random crop keeps, its aspect ratio within
            3/4 to 4/3 of the image's. None, as in the paper, keeps the whole image.
        jitter: largest relative change of contrast and of brightness. All channels are changed alike, which leaves the
            hue as it is (but for values cut off at 0 and 255).
        vertical_flip: probability of upside down: light comes from above, but a specimen lies as it was laid.
    """

    policy: str = "rand-m9-mstd0.5"
    flip: float = 0.5
    crop: tuple[float, float] | None = None
    jitter: float = 0.0
    vertical_flip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip", "vertical_flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name} is a probability, 0 to 1, not {getattr(self, name)}")
        if self.crop and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise DataError(f"crop is a range of area shares, 0 < smallest <= largest <= 1, not {self.crop}")


def vary(pixels: Pixels, augment: Augment, spec: InputSpec, rng: np.random.Generator) -> Pixels:
    """Vary one image (H, W, 3); the result has the size of `spec`."""
    image = PILImage.fromarray(pixels)
    if augment.crop is not None:
        box = _crop_box(image.size, augment.crop, rng)
        image = PILImage.fromarray(resize(image.crop(box), replace(spec, resize="squash")))
    if rng.random() < augment.flip:
        image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
    if augment.vertical_flip and rng.random() < augment.vertical_flip:
        image = image.transpose(PILImage.Transpose.FLIP_TOP_BOTTOM)
    if augment.jitter:
        image = PILImage.fromarray(_jittered(np.asarray(image), augment.jitter, rng))
    if augment.policy:
        with _global_random(rng):
            image = rand_augment(augment.policy)(image)
    return np.asarray(image, dtype=np.uint8)


def _jittered(pixels: Pixels, largest: float, rng: np.random.Generator) -> Pixels:
    """Change contrast about the mean gray, then brightness, each by a factor of 1 - largest to 1 + largest."""
    contrast, brightness = rng.uniform(1 - largest, 1 + largest, 2)
    values = pixels.astype(np.float32)
    mean = values.mean()
    changed: Pixels = np.clip(((values - mean) * contrast + mean) * brightness + 0.5, 0, 255).astype(np.uint8)
    return changed


def with_margin(spec: InputSpec, augment: Augment | None) -> InputSpec:
    """Enlarge the input so that the smallest crop need not be magnified, at most twofold."""
    if augment is None or augment.crop is None:
        return spec
    margin = min(1 / math.sqrt(augment.crop[0]), _MAX_MARGIN)
    return replace(spec, height=round(spec.height * margin), width=round(spec.width * margin))


def _crop_box(size: tuple[int, int], share: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Choose a random part of an image of `size` (width, height), as (left, top, right, bottom) pixels.

    Area and aspect ratio as in Inception's crop (Szegedy et al. 2015), the ratio relative to the image's own: the
    image may already be squashed, and a crop of it then has the distortion of the images that are not cropped.
    """
    area, ratio = rng.uniform(*share), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    width = max(1, min(size[0], round(size[0] * math.sqrt(area * ratio))))
    height = max(1, min(size[1], round(size[1] * math.sqrt(area / ratio))))
    left, top = (int(rng.integers(0, slack, endpoint=True)) for slack in (size[0] - width, size[1] - height))
    return left, top, left + width, top + height


# One per process, not an attribute of the dataset: unpickled in a worker, it would import timm unprepared.
@functools.cache
def rand_augment(policy: str) -> Callable[[PILImage.Image], PILImage.Image]:
    """Make timm's RandAugment of a policy in its notation.

    Raises:
        DataError: if timm does not know the policy.
    """
    from mineral_train.model.backbones import import_timm

    import_timm()
    from timm.data.auto_augment import rand_augment_transform

    try:
        transform: Callable[[PILImage.Image], PILImage.Image] = rand_augment_transform(policy)
    except (AssertionError, ValueError, KeyError, IndexError):
        raise DataError(
            f"--augment {policy!r} is not a RandAugment policy of timm; use for example {Augment.policy!r}, or none"
        ) from None
    return transform


@contextmanager
def _global_random(rng: np.random.Generator) -> Iterator[None]:
    """Within, Python's and numpy's global generators, which timm draws from, follow `rng`; then they are put back.

    Not for two threads of one process at a time: a DataLoader's workers are processes.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  timm's generator
    seed = int(rng.integers(2**32))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
