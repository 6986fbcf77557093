"""Photographs as training samples, decoded by the same code that decodes them in deployment.

What a sample looks like depends on the seed, the epoch and its index alone: not on the number of worker processes,
nor on the order of the samples. A resumed training therefore sees the images that an uninterrupted one sees.
"""

from __future__ import annotations

import functools
import math
import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as PILImage
from torch.utils.data import Dataset

from mineral_batch.errors import DataError
from mineral_batch.images.decode import load_image
from mineral_batch.images.geometry import resize
from mineral_batch.types import Failure, Pixels
from mineral_train.data.manifest import Row, multi_hot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mineral_batch.model.contract import InputSpec

Sample = tuple[torch.Tensor, torch.Tensor, int]

_MAX_MARGIN = 2.0  # beyond twice the input's size, decoding costs more than the detail that a crop gains


@dataclass(frozen=True)
class Augment:
    """How training images are varied, in this order: random crop, mirror image, RandAugment.

    Attributes:
        policy: timm's RandAugment configuration (Cubuk et al. 2020); empty for none. The paper names RandAugment
            without settings. `rand-m9-mstd0.5`, timm's usual one: 2 operations of 15, each applied with
            probability 0.5 at magnitude 9 of 10 (sd 0.5).
        flip: probability of the mirror image. Left and right mean nothing in a specimen.
        crop: (smallest, largest) share of the image's area that a random crop keeps, its aspect ratio within
            3/4 to 4/3 of the image's. None, as in the paper, keeps the whole image.
    """

    policy: str = "rand-m9-mstd0.5"
    flip: float = 0.5
    crop: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flip <= 1:
            raise DataError(f"flip is a probability, 0 to 1, not {self.flip}")
        if self.crop and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise DataError(f"crop is a range of area shares, 0 < smallest <= largest <= 1, not {self.crop}")


class PhotoDataset(Dataset[Sample]):
    """Rows of a manifest as (uint8 (3, H, W) RGB, float32 (L,) of 0 and 1, index) samples.

    Normalisation is not done here: the model does it on its own device. Without `augment` the pixels are those of
    `load_image(path, spec)`, hence those that a deployed model is given.

    Args:
        rows: N photographs.
        labels: L names, in the order of the model's outputs.
        spec: the model's input.
        augment: how to vary the images; None for evaluation.
        seed: of the augmentation.
        cache: keep the decoded images in memory shared by all workers, N × H × W × 3 bytes (larger by at most 4
            with a random crop). Samples are the same; later epochs only do not decode again.

    Raises:
        DataError: if a row has an unknown label, or the cache does not fit into shared memory.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        labels: Sequence[str],
        spec: InputSpec,
        augment: Augment | None = None,
        *,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        self.paths = [row.path for row in rows]
        self.targets = torch.from_numpy(multi_hot([row.labels for row in rows], labels).astype(np.float32))
        self.spec = spec
        self.augment = augment
        self.seed = seed
        # In shared memory: persistent workers hold a copy of the dataset, and must see the epoch change.
        self._epoch = _shared(torch.zeros(1, dtype=torch.int64))
        self._stored_spec = _with_margin(spec, augment)
        self._cache = _Cache(len(rows), self._stored_spec) if cache else None
        if augment and augment.policy:
            _rand_augment(augment.policy)  # a mistake in it shows here and not in a worker

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose variations `__getitem__` gives; call it before iterating over a loader."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """One sample.

        Raises:
            DataError: if the photograph cannot be decoded.
        """
        pixels = self._decoded(index)
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, int(self._epoch), index])
            pixels = self._varied(pixels, self.augment, rng)
        # A copy: the pixels may be the cache's own, or read-only memory of Pillow's.
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.targets[index], index

    def _decoded(self, index: int) -> Pixels:
        if self._cache is None:
            return _load(self.paths[index], self._stored_spec)
        stored = self._cache.get(index)
        return self._cache.put(index, _load(self.paths[index], self._stored_spec)) if stored is None else stored

    def _varied(self, pixels: Pixels, augment: Augment, rng: np.random.Generator) -> Pixels:
        image = PILImage.fromarray(pixels)
        if augment.crop is not None:
            box = _crop_box(image.size, augment.crop, rng)
            image = PILImage.fromarray(resize(image.crop(box), replace(self.spec, resize="squash")))
        if rng.random() < augment.flip:
            image = image.transpose(PILImage.Transpose.FLIP_LEFT_RIGHT)
        if augment.policy:
            with _global_random(rng):
                image = _rand_augment(augment.policy)(image)
        return np.asarray(image, dtype=np.uint8)


def _load(path: Path, spec: InputSpec) -> Pixels:
    image = load_image(path, spec)
    if isinstance(image, Failure):
        raise DataError(
            f"{path}: {image.reason}; leave such files out with a manifest made by "
            "`mineral-train data OLD.csv -o NEW.csv --keep-split`"
        )
    return image.pixels


def _with_margin(spec: InputSpec, augment: Augment | None) -> InputSpec:
    """The input larger by so much that the smallest crop need not be magnified, at most twofold."""
    if augment is None or augment.crop is None:
        return spec
    margin = min(1 / math.sqrt(augment.crop[0]), _MAX_MARGIN)
    return replace(spec, height=round(spec.height * margin), width=round(spec.width * margin))


def _crop_box(size: tuple[int, int], share: tuple[float, float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A random part of an image of `size` (width, height), as (left, top, right, bottom) pixels.

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
def _rand_augment(policy: str) -> Callable[[PILImage.Image], PILImage.Image]:
    from mineral_train.model.backbones import import_timm

    import_timm()
    from timm.data.auto_augment import rand_augment_transform

    try:
        transform: Callable[[PILImage.Image], PILImage.Image] = rand_augment_transform(policy)
    except (AssertionError, ValueError, KeyError, IndexError):
        raise DataError(
            f"augmentation policy {policy!r} is none of timm's RandAugment; an example is {Augment.policy!r}"
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


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that worker processes see the changes of."""
    shared: torch.Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class _Cache:
    """Decoded images in memory that the workers of a loader share, filled as they are first asked for."""

    def __init__(self, count: int, spec: InputSpec) -> None:
        size = count * spec.height * spec.width * 3
        _require_shared_memory(size)
        self._pixels = _shared(torch.empty((count, spec.height, spec.width, 3), dtype=torch.uint8))
        self._filled = _shared(torch.zeros(count, dtype=torch.bool))

    def get(self, index: int) -> Pixels | None:
        if not self._filled[index]:
            return None
        pixels: Pixels = self._pixels[index].numpy()
        return pixels

    def put(self, index: int, pixels: Pixels) -> Pixels:
        self._pixels[index].numpy()[:] = pixels
        self._filled[index] = True  # last: an image that is marked is complete
        return pixels


def _require_shared_memory(size: int, folder: Path = Path("/dev/shm")) -> None:  # noqa: S108  not a file of ours
    """Refuse a cache that the system would kill the process for (containers often have 64 MB of shared memory)."""
    if folder.is_dir() and shutil.disk_usage(folder).free < size:
        raise DataError(
            f"the cache of decoded images needs {size / 1e9:.1f} GB of shared memory and {folder} has "
            f"{shutil.disk_usage(folder).free / 1e9:.1f} GB free; train without the cache, or with a larger "
            "--shm-size of the container"
        )
