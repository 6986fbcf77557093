"""The two splits that training looks at, checked before anything slow."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.model.contract import InputSpec
from mineral_train.data import images
from mineral_train.data.dataset import PhotoDataset, damaged
from mineral_train.data.labels import raise_faults
from mineral_train.data.manifest import Manifest, Row, read_manifest
from mineral_train.training.config import RunOptions, TrainConfig


@dataclass(frozen=True)
class TrainingManifest:
    """A manifest and the bytes it was read from.

    Attributes:
        path: of the CSV.
        manifest: its content.
        sha256: of the file, by which a resumed run knows that the data are the same.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def read(cls, path: Path, labels: tuple[str, ...]) -> TrainingManifest:
        """Read and check the manifest, and that its photographs are there.

        Raises:
            DataError: naming all faults at once.
        """
        manifest = read_manifest(path, labels)
        images.check_images(manifest, path)
        return cls(path, manifest, hashlib.sha256(path.read_bytes()).hexdigest())


@dataclass(frozen=True)
class TrainingData:
    """Training and validation images.

    Attributes:
        train: with augmentation.
        val: without.
    """

    train: PhotoDataset
    val: PhotoDataset

    @classmethod
    def open(
        cls,
        source: TrainingManifest,
        config: TrainConfig,
        options: RunOptions,
        spec: InputSpec,
        say: Callable[[str], None],
        *,
        check: bool,
    ) -> TrainingData:
        """Open both splits; `check` decodes every validation image once.

        A run must not find out after its first epoch that it cannot validate.

        Raises:
            DataError: naming the validation images that cannot be decoded, unless `options.skip_damaged`.
        """
        val = source.manifest.select("val")
        failures = images.undecodable(val, spec) if check else []
        if failures and not options.skip_damaged:
            raise_faults(str(source.path), [damaged(failure) for failure in failures])
        val = _without(val, (failure.path for failure in failures))
        if not any(row.labels for row in val):
            raise DataError(f"{source.path}: no image of the split 'val' that can be decoded has a label")
        for failure in failures:
            say(f"skipped in val: {failure.path}: {failure.reason}")
        labels = source.manifest.labels
        train = PhotoDataset(
            source.manifest.select("train"),
            labels,
            spec,
            config.augmentation,
            seed=config.seed,
            cache=options.cache,
            skip_damaged=options.skip_damaged,
        )
        return cls(train, PhotoDataset(val, labels, spec, cache=options.cache))


def _without(rows: list[Row], paths: Iterable[str]) -> list[Row]:
    skipped = set(paths)
    return [row for row in rows if str(row.path) not in skipped]
