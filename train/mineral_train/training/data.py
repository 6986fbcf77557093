"""The two splits that training looks at, checked before anything slow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths
from mineral_batch.model.contract import InputSpec
from mineral_batch.results.predictions import read_predictions
from mineral_batch.storage.models import fetch
from mineral_train.data import images
from mineral_train.data.dataset import PhotoDataset, damaged
from mineral_train.data.labels import label_faults, raise_faults
from mineral_train.data.manifest import SPLITS, Manifest, Row, inspect_manifest
from mineral_train.data.parents import imply_parents
from mineral_train.model.fetched import shown
from mineral_train.training.auxiliary import AuxiliaryNames
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.sampling import Sampler
from mineral_train.training.sets import set_names


@dataclass(frozen=True)
class TrainingManifest:
    """One manifest, or several taken together, and the bytes they were read from.

    Attributes:
        paths: of the CSVs.
        manifest: their content.
        sets: of each row, the name of its manifest.
        sha256: of the files, by which a resumed run knows that the data are the same.
    """

    paths: tuple[Path, ...]
    manifest: Manifest
    sets: tuple[str, ...]
    sha256: str

    @classmethod
    def read(
        cls,
        paths: str | Path | Sequence[str | Path],
        labels: tuple[str, ...],
        soft_targets: str = "",
        *,
        parents: bool = False,
        spec: InputSpec | None = None,
        is_tested: bool = False,
    ) -> TrainingManifest:
        """Read and check the manifests, and that their photographs are there.

        Args:
            paths: one CSV or several.
            labels: the label set.
            soft_targets: a table that belongs to the data, too.
            parents: label varieties with their species and group, too.
            spec: if there are faults, decode the validation images for it, so that those that cannot be decoded are
                named with the others; None leaves them to `TrainingData.open`.
            is_tested: the split `test` is needed, too: its files are checked, and with `spec` decoded.

        Raises:
            DataError: naming all faults at once: of the labels, of the tables and of the files.
        """
        files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
        if len(set(map(os.path.abspath, files))) < len(files):
            raise DataError("one manifest is named twice; name each once")
        tables, faults = zip(*(inspect_manifest(path, labels) for path in files), strict=True)
        manifest = Manifest(tuple(row for table in tables for row in table.rows), tables[0].labels)
        splits = SPLITS if is_tested else images.TRAINED
        _raise_all(manifest, list(chain.from_iterable(faults)), ", ".join(map(shown, files)), spec, splits)
        manifest = imply_parents(manifest) if parents else manifest
        names = set_names(files)
        sets = tuple(name for name, table in zip(names, tables, strict=True) for _ in table.rows)
        digest = hashlib.sha256()
        for path in [*files, *([Path(soft_targets)] if soft_targets else [])]:
            digest.update(_content(path))
        return cls(tuple(files), manifest, sets, digest.hexdigest())

    @property
    def name(self) -> str:
        """What to call the data, without folders that are nobody's business."""
        return " + ".join(set_names(self.paths)) if len(self.paths) > 1 else self.paths[0].name

    def sets_of(self, paths: Iterable[Path]) -> list[str]:
        """Of each photograph, the name of its manifest."""
        of = {row.path: name for row, name in zip(self.manifest.rows, self.sets, strict=True)}
        return [of[path] for path in paths]


@dataclass(frozen=True)
class TrainingData:
    """Training and validation images.

    Attributes:
        train: with augmentation.
        val: without.
        sampler: of the training images.
        val_sets: of each validation image, the name of its manifest.
        auxiliary: (N, A) targets of the auxiliary names, which `train.targets` has behind the labels; None without.
    """

    train: PhotoDataset
    val: PhotoDataset
    sampler: Sampler
    val_sets: list[str]
    auxiliary: torch.Tensor | None = None

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
            DataError: naming the validation images that cannot be decoded, unless `options.skip_damaged`; also if there
                are no auxiliary names where the recipe wants them.
        """
        labels, rows = source.manifest.labels, source.manifest.select("train")
        auxiliary = _auxiliary(rows, config, labels, say)
        val = source.manifest.select("val")
        failures = images.undecodable(val, spec) if check else []
        if failures and not options.skip_damaged:
            raise_faults(source.name, [damaged(failure) for failure in failures])
        val = _without(val, (failure.path for failure in failures))
        if not any(row.labels for row in val):
            raise DataError(f"{source.name}: no image of the split 'val' that can be decoded has a label")
        for failure in failures:
            say(f"Skipped in val: {failure.path}: {failure.reason}")
        size = config.train_size or spec.height
        train = PhotoDataset(
            rows,
            labels,
            replace(spec, height=size, width=size),
            config.augmentation,
            seed=config.seed,
            cache=options.cache,
            skip_damaged=options.skip_damaged,
        )
        if config.soft_targets:
            train.targets = soften(train, labels, fetch(config.soft_targets), config.soft_weight, say)
        if auxiliary is not None:
            train.targets = torch.cat([train.targets, auxiliary], dim=1)
        sampler = Sampler(train.truth.bool().numpy(), config.repeat, config.seed)
        dataset = PhotoDataset(val, labels, spec, cache=options.cache)
        return cls(train, dataset, sampler, source.sets_of(dataset.paths), auxiliary)


def _auxiliary(
    rows: list[Row], config: TrainConfig, labels: Sequence[str], say: Callable[[str], None]
) -> torch.Tensor | None:
    if not config.aux_column:
        return None
    found = AuxiliaryNames.read(rows, config.aux_column, config.aux_least, labels)
    examples = ", ".join(found.names[:3]) + (", ..." if len(found.names) > 3 else "")
    say(
        f"{len(found.names)} auxiliary names from the column {config.aux_column!r} ({examples}), "
        f"{int(found.targets.any(dim=1).sum()):,} of {len(rows):,} training images have one"
    )
    return found.targets


def soften(
    train: PhotoDataset, labels: Sequence[str], table: Path, weight: float, say: Callable[[str], None]
) -> torch.Tensor:
    """Blend the truth (N, L) with a teacher's probabilities: (1 - weight) truth + weight probability.

    Images that the table lacks keep the truth.

    Args:
        train: the images.
        labels: L names.
        table: predictions, as `mineral-batch predict` writes them; its paths are matched as `evaluate` matches them.
        weight: of the teacher.
        say: is told how many images the table has.

    Raises:
        DataError: if the table cannot be read, lacks a label, or has none of the images.
    """
    teacher = read_predictions(table, labels, exactly=labels)
    images = [str(path) for path in train.paths]
    matches = match_paths(teacher.paths, images).index
    if not matches:
        raise DataError(
            f"the soft targets {table} have none of the {len(images):,} training images; its first path is "
            f"{teacher.paths[0] if teacher.paths else 'missing'}, that of the images {images[0]}"
        )
    places = {path: place for place, path in enumerate(images)}
    targets = train.truth.clone()
    for path, row in matches.items():
        place = places[path]
        targets[place] = (1 - weight) * targets[place] + weight * torch.from_numpy(teacher.scores[row]).float()
    say(f"Soft targets for {len(matches):,} of {len(images):,} training images, weight {weight:g}")
    return targets


def _raise_all(manifest: Manifest, table: list[str], name: str, spec: InputSpec | None, splits: Sequence[str]) -> None:
    """Raise one `DataError` for all that is wrong with the labels, the tables and the files."""
    kinds = [
        label_faults(manifest.labels),
        table,
        images.split_faults(manifest, splits),
        images.file_faults(manifest, splits),
    ]
    if spec and (any(kinds) or "test" in splits):
        rows = [row for split in splits if split != "train" for row in manifest.select(split)]
        whole = [row for row in rows if row.path.is_file() and row.path.stat().st_size]
        kinds.append([damaged(failure) for failure in images.undecodable(whole, spec)])
    raise_faults(name, *kinds)


def _content(path: Path) -> bytes:
    try:
        return fetch(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def _without(rows: list[Row], paths: Iterable[str]) -> list[Row]:
    skipped = set(paths)
    return [row for row in rows if str(row.path) not in skipped]
