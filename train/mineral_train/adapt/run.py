"""Adapt an exported model to a user's own labels: features once, a new last layer, an honest comparison, a new file."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import EQUATION_6, mean_average_precision
from mineral_batch.evaluation.thresholds import tune_thresholds
from mineral_batch.files import write_file
from mineral_batch.images.decode import load_image
from mineral_batch.minerals import canonical
from mineral_batch.model.contract import Measured, ModelContract
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.types import Failure
from mineral_train.adapt.compare import FEW, LabelComparison, compare
from mineral_train.adapt.features import FeatureCache, Features, extract
from mineral_train.adapt.graph import LinearHead, answers
from mineral_train.adapt.head import FOLDS, Adapted, Head, adapt_head
from mineral_train.calibration import fit_calibration
from mineral_train.data.duplicates import classes, connected, link_classes, near_duplicates
from mineral_train.data.folders import (
    TableFormat,
    folder_names,
    is_negative,
    merge_identical,
    rows_from_folders,
    rows_from_table,
)
from mineral_train.data.labels import label_faults, raise_faults, split_labels
from mineral_train.data.manifest import Row, multi_hot, read_table

Progress = Callable[[Iterable[int], int], Iterable[int]]

LEAST_IMAGES = 2 * FOLDS
_CHECKED = 4  # photographs whose answers are compared before the file is written
_TOLERANCE = 1e-3
_METHOD = "logistic regression per label on the features of the model it was adapted from, whose logit is one of them"


@dataclass(frozen=True)
class LabelledPhotos:
    """What the user has.

    Attributes:
        rows: photographs; one row for files with the same bytes.
        labels: L names.
        contradictions: files that are there several times with different labels.
        merged: rows that were merged into another with the same bytes.
    """

    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    contradictions: int
    merged: int


@dataclass(frozen=True)
class Result:
    """A model that was adapted, not written yet.

    Attributes:
        content: of the ONNX file.
        contract: inside it.
        rows: the comparison per label.
        mean: over the labels that the old model knows; None if it knows none.
        failures: photographs that could not be decoded and were left out.
    """

    content: bytes
    contract: ModelContract
    rows: list[LabelComparison]
    mean: LabelComparison | None
    failures: tuple[Failure, ...]

    @property
    def is_worse(self) -> bool:
        """Whether the old model is clearly better on the labels that it knows."""
        return self.mean is not None and self.mean.images >= FEW and self.mean.verdict == "worse"


def read_photos(source: Path, known: Sequence[str], labels: Sequence[str] | None, table: TableFormat) -> LabelledPhotos:
    """Read a table or a folder of folders; names that mean a label of the old model get its name.

    Args:
        source: a CSV, or a folder with one folder per label.
        known: labels of the old model.
        labels: the label set; None takes those that occur.
        table: the columns of a CSV.

    Raises:
        DataError: if it is missing, or has labels that cannot be.
    """
    if not source.exists():
        raise DataError(f"no such folder or CSV: {source}")
    if labels is None:
        labels = _occurring(source, known, table)
    raise_faults(str(source), label_faults(tuple(labels)))
    rows = rows_from_folders(source, labels) if source.is_dir() else rows_from_table(source, labels, table)
    merged = merge_identical(rows, labels)
    before = {row.path: frozenset(row.labels) for row in rows}
    changed = sum(before[row.path] != frozenset(row.labels) for row in merged)
    return LabelledPhotos(tuple(merged), tuple(labels), changed, len(rows) - len(merged))


def _occurring(source: Path, known: Sequence[str], table: TableFormat) -> tuple[str, ...]:
    """The labels that occur: those of the old model first, in its order, then the others by name."""
    if source.is_dir():
        names = {name for name in folder_names(source) if not is_negative(name)}
    else:
        header, records = read_table(source, [table.path_column, table.labels_column])
        if table.labels_column not in header:
            raise DataError(
                f"{source} has no column {table.labels_column!r}, only {', '.join(header)}; name it with "
                "--labels-column"
            )
        names = {name for _, r in records for name in split_labels(r[table.labels_column], table.separator)}
    meant = {canonical(name, known) or name for name in names}
    return (*(label for label in known if label in meant), *sorted(meant - set(known)))


def adapt(
    base: Path,
    photos: LabelledPhotos,
    cache: Path,
    *,
    name: str,
    source: str,
    group_column: str | None = None,
    seed: int = 0,
    progress: Progress = lambda places, _: places,
) -> Result:
    """Fit, compare, calibrate and assemble a model; nothing but the cache is written.

    Args:
        base: the model to adapt, an ONNX file that ends with one linear layer.
        photos: the labelled photographs.
        cache: where features are kept.
        name: of the new model.
        source: what the photographs are, in words.
        group_column: of the table; photographs with one value in it stay in one fold.
        seed: of the folds and the bootstrap.
        progress: wraps the photographs whose features are computed.

    Raises:
        DataError: if the model cannot be adapted, or there are too few photographs.
    """
    head = LinearHead.read(base)
    features = extract(head, photos.rows, FeatureCache(cache, head), progress)
    labels = photos.labels
    y = multi_hot([row.labels for row in features.rows], labels)
    _require_enough(y, labels, source)
    known = np.array([label in head.contract.labels for label in labels])
    place = {label: k for k, label in enumerate(head.contract.labels)}
    old = [
        (head.weights[place[label]].astype(np.float64), float(head.bias[place[label]])) if label in place else None
        for label in labels
    ]
    adapted = adapt_head(features.vectors, y, _groups(features, group_column), old, seed)
    before = np.zeros(y.shape)
    for k, row in enumerate(old):
        if row is not None:
            before[:, k] = features.vectors @ row[0] + row[1]
    rows, mean = compare(labels, y, before, known, adapted.out_of_fold, seed)
    contract, final = _contract(head, photos, adapted, y, rows, name=name, source=source)
    content = head.with_head(final.weights.astype(np.float32), final.bias.astype(np.float32), contract)
    _verify(content, head, features, final)
    return Result(content, contract, rows, mean, features.failures)


def write(result: Result, path: Path) -> None:
    """Write the model atomically.

    Raises:
        DataError: if it cannot be written.
    """
    write_file(path, result.content)


def _require_enough(y: NDArray[np.bool_], labels: Sequence[str], source: str) -> None:
    if len(y) < LEAST_IMAGES:
        raise DataError(
            f"{source}: {len(y)} photographs can be decoded, and adapting needs at least {LEAST_IMAGES}; ten of each "
            "label are a start, fifty are good"
        )
    if not y.any() or y.all():
        raise DataError(
            f"{source}: every photograph shows {', '.join(labels[:3]) if y.all() else 'none of the labels'}; add "
            "photographs that differ: others go into a folder `none`, or get an empty cell"
        )


def _groups(features: Features, column: str | None) -> NDArray[np.int64]:
    """(N,) numbers; near-duplicates and photographs with one value in the column share one."""
    alike = near_duplicates(features.thumbnails)
    if column and column not in features.rows[0].extra:
        raise DataError(f"no column {column!r} to group by; there are: {', '.join(features.rows[0].extra)}")
    named = ((row.extra[column], i) for i, row in enumerate(features.rows) if column and row.extra[column])
    return connected(len(features.rows), alike, link_classes(classes(named)))


def _contract(
    head: LinearHead,
    photos: LabelledPhotos,
    adapted: Adapted,
    y: NDArray[np.bool_],
    rows: Sequence[LabelComparison],
    *,
    name: str,
    source: str,
) -> tuple[ModelContract, Head]:
    """The contract, and the layer with the calibration folded in."""
    words = f"{len(y)} photographs of {source}, cross-validated in {FOLDS} folds"
    calibration = fit_calibration(adapted.out_of_fold, y, dataset=words)
    scale, bias = np.array(calibration.scale), np.array(calibration.bias)
    final = Head(scale[:, None] * adapted.head.weights, scale * adapted.head.bias + bias)
    probabilities = 1 / (1 + np.exp(-(adapted.out_of_fold * scale + bias)))
    figure = mean_average_precision(adapted.out_of_fold, y)
    ap = {row.label: row.after for row in rows}
    support = {label: int(count) for label, count in zip(photos.labels, y.sum(axis=0), strict=True)}
    contract = replace(
        head.contract,
        labels=photos.labels,
        thresholds=tuple(tune_thresholds(probabilities, y).tolist()),
        name=name,
        provenance={
            "adapted_from": head.contract.name,
            "adapted_from_graph_sha256": graph_digest(head.path),
            "method": _METHOD,
            "images": len(y),
            "strength": adapted.strength,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "thresholds": {"rule": "highest F1 per label, cross-validated"},
        },
        measured=Measured(figure.mean, EQUATION_6, words, len(y), {k: ap.get(k) for k in photos.labels}, support),
        calibration=calibration,
    )
    return contract, final


def _verify(content: bytes, head: LinearHead, features: Features, final: Head) -> None:
    """Compare the file's answers on a few photographs with the layer's: nothing is written that differs."""
    pixels, places = [], []
    for place, row in enumerate(features.rows[:_CHECKED]):
        image = load_image(row.path, head.contract.input)
        if not isinstance(image, Failure):
            pixels.append(image.pixels)
            places.append(place)
    if not pixels:
        return
    expected = 1 / (1 + np.exp(-final.logits(features.vectors[places])))
    difference = float(np.abs(answers(content, np.stack(pixels)) - expected).max())
    if difference > _TOLERANCE:
        raise DataError(
            f"the adapted file answers differently from what was fitted (by {difference:.3f}); nothing was written; "
            "delete the feature file and try again"
        )
