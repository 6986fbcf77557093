"""Photographs as training samples, decoded by the same code that decodes them in deployment.

A sample depends on the seed, the epoch and its index alone: not on the number of worker processes, nor on the order of
the samples. A resumed run therefore sees the images that an uninterrupted one sees.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from mineral_batch.errors import DataError
from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import InputSpec
from mineral_batch.types import Failure, Pixels
from mineral_train.data.augment import Augment, rand_augment, vary, with_margin
from mineral_train.data.manifest import Row, multi_hot

Sample = tuple[torch.Tensor, torch.Tensor, int]


class PhotoDataset(Dataset[Sample]):
    """Rows of a manifest as (uint8 (3, H, W) RGB, float32 (L,) of 0 and 1, index) samples.

    An index from N on is the image `index % N` again, varied in another way: an epoch may draw one several times.

    Normalization is not done here: the model does it on its own device. Without `augment` the pixels are those of
    `load_image(path, spec)`, hence those that a deployed model gets.

    Args:
        rows: N photographs.
        labels: L names, in the order of the model's outputs.
        spec: the model's input.
        augment: how to vary the images; None for evaluation.
        seed: of the augmentation.
        cache: keep the decoded images in memory shared by all workers, N × H × W × 3 bytes (larger by at most 4
            with a random crop). Samples are the same; later epochs do not decode again.
        skip_damaged: a photograph that cannot be decoded becomes black pixels with the index ~index, which is
            negative, instead of an error.

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
        skip_damaged: bool = False,
    ) -> None:
        self.paths = [row.path for row in rows]
        self.truth = torch.from_numpy(multi_hot([row.labels for row in rows], labels).astype(np.float32))
        self.targets = self.truth  # softer ones, if a teacher gave some
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self._skip_damaged = skip_damaged
        # In shared memory: persistent workers hold a copy of the dataset, and must see the epoch change.
        self._epoch = _shared(torch.zeros(1, dtype=torch.int64))
        self._stored_spec = with_margin(spec, augment)
        self._cache = _Cache(len(rows), self._stored_spec) if cache else None
        if augment and augment.policy:
            rand_augment(augment.policy)  # a mistake in it shows here and not in a worker

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose variations `__getitem__` gives; call it before iterating over a loader."""
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        """Load one sample.

        Raises:
            DataError: if the photograph cannot be decoded, unless such photographs are skipped.
        """
        draw, index = index, index % len(self.paths)
        pixels = self._decoded(index)
        if isinstance(pixels, Failure):
            if not self._skip_damaged:
                raise DataError(damaged(pixels))
            return torch.zeros(3, self.spec.height, self.spec.width, dtype=torch.uint8), self.targets[index], ~index
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, int(self._epoch), draw])
            pixels = vary(pixels, self.augment, self.spec, rng)
        # A copy: the pixels may be the cache's own, or read-only memory of Pillow's.
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), self.targets[index], index

    def _decoded(self, index: int) -> Pixels | Failure:
        stored = None if self._cache is None else self._cache.get(index)
        if stored is not None:
            return stored
        image = load_image(self.paths[index], self._stored_spec)
        if isinstance(image, Failure):
            return image
        return image.pixels if self._cache is None else self._cache.put(index, image.pixels)


def damaged(failure: Failure) -> str:
    """Say that a photograph cannot be decoded and how to train without it."""
    return (
        f"{failure.path}: {failure.reason}; restore the file, or train without it: the same command with --skip-damaged"
    )


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """Move a tensor to memory that worker processes share."""
    shared: torch.Tensor = tensor.share_memory_()  # type: ignore[no-untyped-call]
    return shared


class _Cache:
    """Decoded images in memory that the workers of a loader share, filled on first use."""

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
