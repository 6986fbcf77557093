"""Adapt an exported model to a user's own labels: features once, a new last layer, an honest comparison, a new file."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import DataError
from mineral_batch.evaluation.calibration import probability_scores
from mineral_batch.evaluation.metrics import EQUATION_6, mean_average_precision
from mineral_batch.evaluation.thresholds import expected_f1_thresholds
from mineral_batch.files import write_file
from mineral_batch.images.decode import load_image
from mineral_batch.model.calibration import ProbabilityScores
from mineral_batch.model.contract import Measured, ModelContract
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.types import Failure
from mineral_train.adapt.compare import FEW, LabelComparison, compare
from mineral_train.adapt.features import FeatureCache, Features, extract
from mineral_train.adapt.graph import LinearHead, answers
from mineral_train.adapt.head import FOLDS, Adapted, Head, adapt_head
from mineral_train.adapt.photos import LEAST_IMAGES, LabeledPhotos, old_labels
from mineral_train.calibration import fit_calibration
from mineral_train.data.duplicates import classes, connected, link_classes, near_duplicates
from mineral_train.data.manifest import multi_hot
from mineral_train.data.splits import stratified_folds

Progress = Callable[[Iterable[int], int], Iterable[int]]

_CHECKED = 4  # photographs whose answers are compared before the file is written
_TOLERANCE = 1e-3
_LINE_EVERY = 10.0  # seconds between two lines of a long fit
_METHOD = "logistic regression per label on the features of {}"
_WITH_OLD = ", whose logit is one of them"
_INHERITED = ("backbone", "weights", "features")  # facts about the model whose features these are


@dataclass(frozen=True)
class Candidate:
    """A new layer on one model's features.

    Attributes:
        base: the model.
        features: of all photographs.
        is_test: (N,) which are held out.
        adapted: the layer, fitted on the others; `out_of_fold` has their rows.
        truth: (N, L).
        fitted: (N,) which photographs it was fitted on.
    """

    base: LinearHead
    features: Features
    is_test: NDArray[np.bool_]
    fitted: NDArray[np.bool_]
    truth: NDArray[np.bool_]
    adapted: Adapted

    @property
    def mean_ap(self) -> float:
        """The mean AP of the held-out folds."""
        return mean_average_precision(self.adapted.out_of_fold, self.truth[self.fitted]).mean


@dataclass(frozen=True)
class Comparison:
    """The new model beside the old one on photographs that neither the layer nor its penalty was fitted on.

    Attributes:
        dataset: which photographs these are, in a contract's words.
        title: the same for the screen, with their number.
        rows: per label.
        mean: over the labels that the old model knows; None if it knows none.
        scores: of probabilities, on these photographs.
    """

    dataset: str
    title: str
    rows: list[LabelComparison]
    mean: LabelComparison | None
    scores: ProbabilityScores

    @property
    def is_worse(self) -> bool:
        """Whether the old model is clearly better on the labels that it knows."""
        return self.mean is not None and self.mean.images >= FEW and self.mean.verdict == "worse"


@dataclass(frozen=True)
class Result:
    """A model that was adapted, not written yet.

    Attributes:
        content: of the ONNX file.
        contract: inside it.
        folds: the comparison by cross-validation.
        test: that on the held-out photographs; None without them.
        left_out: photographs that were not fitted on because they are near-duplicates or of the specimen of a test one.
        failures: photographs that could not be decoded and were left out.
    """

    content: bytes
    contract: ModelContract
    folds: Comparison
    test: Comparison | None
    left_out: int
    failures: tuple[Failure, ...]

    @property
    def comparison(self) -> Comparison:
        """The one that counts: on held-out photographs if there are any."""
        return self.test or self.folds


def fit_candidate(
    base: Path,
    photos: LabeledPhotos,
    cache: Path,
    *,
    source: str,
    group_column: str | None = None,
    test_share: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda places, _: places,
    say: Callable[[str], None] = lambda _: None,
) -> Candidate:
    """Compute the features of a model and fit a layer on them; nothing but the cache is written.

    Args:
        base: an ONNX file that ends with one linear layer.
        photos: the labeled photographs.
        cache: folder where features are kept.
        source: what the photographs are, in words.
        group_column: of the table; photographs with one value in it stay in one fold.
        test_share: hold out this share of the photographs, drawn by seed; besides those of the split `test`.
        seed: of the folds and the draw.
        progress: wraps the photographs whose features are computed.
        say: called with lines for the user.

    Raises:
        DataError: if the model cannot be adapted, or there are too few photographs.
    """
    head = LinearHead.read(base)
    features = extract(head, photos.rows, FeatureCache(cache, head), progress)
    labels = photos.labels
    y = multi_hot([row.labels for row in features.rows], labels)
    groups = photo_groups(features, group_column)
    is_test = np.array([row.split == "test" for row in features.rows], bool)
    if test_share:
        # One fold of 1/share: the share to a photograph or two, with whole groups and every label.
        is_test |= stratified_folds(y, groups, max(2, round(1 / test_share)), seed) == 0
    fitted = ~is_test & ~np.isin(groups, groups[is_test])
    _require_enough(y[fitted], labels, source, features)
    if is_test.any() and not y[is_test].any():
        raise DataError(f"{source}: no test photograph shows a label, so they cannot judge a model")
    say(f"Fitting {len(labels)} labels on {int(fitted.sum()):,} photographs, {FOLDS}-fold cross-validation")
    rows = _old_rows(head, labels)
    adapted = adapt_head(features.vectors[fitted], y[fitted], groups[fitted], rows, seed, _now_and_then(say))
    return Candidate(head, features, is_test, fitted, y, adapted)


def _now_and_then(say: Callable[[str], None]) -> Callable[[str], None]:
    """Pass on a line if the last one is `_LINE_EVERY` seconds old, so that a short fit says nothing."""
    last = time.monotonic()

    def line(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            say(text)

    return line


def finish(chosen: Candidate, reference: Candidate, photos: LabeledPhotos, *, name: str, source: str) -> Result:
    """Compare, calibrate and assemble a model; nothing is written.

    Args:
        chosen: the layer to deploy.
        reference: holds the old model that it is compared with.
        photos: the labeled photographs.
        name: of the new model.
        source: what the photographs are, in words.

    Raises:
        DataError: if the photographs changed since they were read, or the file's answers are not the layer's.
    """
    if chosen.features.rows != reference.features.rows:
        raise DataError(f"{source}: photographs changed while their features were computed; start again")
    y, fitted, is_test = chosen.truth, chosen.fitted, chosen.is_test
    words = f"{source}, cross-validated in {FOLDS} folds"
    calibration = fit_calibration(chosen.adapted.out_of_fold, y[fitted], dataset=words)
    scale, bias = np.array(calibration.scale), np.array(calibration.bias)
    final = Head(scale[:, None] * chosen.adapted.head.weights, scale * chosen.adapted.head.bias + bias)
    held_out = chosen.adapted.out_of_fold * scale + bias
    folds = _compared(
        words, f"{int(fitted.sum())} photographs of {words}", reference, fitted, held_out, photos.labels, y
    )
    folds = replace(folds, scores=calibration.after)  # those of `held_out` judge a calibration by its own photographs
    test = None
    if is_test.any():
        title = f"{int(is_test.sum())} held-out test photographs of {source}"
        logits = final.logits(chosen.features.vectors[is_test])
        test = _compared(f"{source}, held-out test", title, reference, is_test, logits, photos.labels, y)
    contract = replace(
        _contract(chosen, photos, test or folds, name=name),
        thresholds=tuple(expected_f1_thresholds(_sigmoid(held_out), y[fitted]).tolist()),
        calibration=calibration,
    )
    content = chosen.base.with_head(final.weights.astype(np.float32), final.bias.astype(np.float32), contract)
    _verify(content, chosen, final)
    left_out = int((~fitted & ~is_test).sum())
    return Result(content, contract, folds, test, left_out, chosen.features.failures)


def write(result: Result, path: Path) -> None:
    """Write the model atomically.

    Raises:
        DataError: if it cannot be written.
    """
    write_file(path, result.content)


def _old_rows(head: LinearHead, labels: Sequence[str]) -> list[tuple[NDArray[np.float64], float] | None]:
    """Of each label the old layer's weights and bias; None if the model does not know it under any name."""
    known = head.contract.labels
    places = {label: known.index(old) for label, old in old_labels(labels, known).items()}
    rows = [places.get(label) for label in labels]
    return [None if k is None else (head.weights[k].astype(np.float64), float(head.bias[k])) for k in rows]


def _require_enough(y: NDArray[np.bool_], labels: Sequence[str], source: str, features: Features) -> None:
    failed = features.failures
    if len(y) < LEAST_IMAGES and failed:
        first = failed[0]
        raise DataError(
            f"{source}: {len(failed)} of {len(failed) + len(features.rows)} photographs cannot be read, and adapting "
            f"needs at least {LEAST_IMAGES}; the first: {first.path}: {first.reason}"
        )
    if len(y) < LEAST_IMAGES:
        raise DataError(
            f"{source}: {len(y)} photographs can be fitted on, and adapting needs at least {LEAST_IMAGES}; ten "
            "of each label are a start, fifty are good"
        )
    if not y.any() or y.all():
        raise DataError(
            f"{source}: every photograph shows {', '.join(labels[:3]) if y.all() else 'none of the labels'}; add "
            "photographs that differ: others go into a folder `none`, or get an empty cell"
        )


def photo_groups(features: Features, column: str | None) -> NDArray[np.int64]:
    """(N,) numbers; near-duplicates and photographs with one value in the column share one.

    Raises:
        DataError: if there is no such column.
    """
    alike = near_duplicates(features.thumbnails)
    if column and features.rows and column not in features.rows[0].extra:
        raise DataError(f"no column {column!r} to group by; there are: {', '.join(features.rows[0].extra)}")
    named = ((row.extra[column], i) for i, row in enumerate(features.rows) if column and row.extra[column])
    return connected(len(features.rows), alike, link_classes(classes(named)))


def _compared(
    dataset: str,
    title: str,
    reference: Candidate,
    which: NDArray[np.bool_],
    logits: NDArray[np.float64],
    labels: Sequence[str],
    y: NDArray[np.bool_],
) -> Comparison:
    """Compare logits of the photographs `which` with those of the old model."""
    old = _old_rows(reference.base, labels)
    known = np.array([row is not None for row in old])
    before = np.zeros((int(which.sum()), len(labels)))
    for k, row in enumerate(old):
        if row is not None:
            before[:, k] = reference.features.vectors[which] @ row[0] + row[1]
    rows, mean = compare(labels, y[which], before, known, logits, seed=0)
    return Comparison(dataset, title, rows, mean, probability_scores(_sigmoid(logits), y[which]))


def _contract(chosen: Candidate, photos: LabeledPhotos, figures: Comparison, *, name: str) -> ModelContract:
    """The contract, but for thresholds and calibration."""
    head, which = chosen.base, (chosen.is_test if chosen.is_test.any() else chosen.fitted)
    y = chosen.truth[which]
    knows = any(row is not None for row in _old_rows(head, photos.labels))
    ap = {row.label: row.after for row in figures.rows}
    support = {label: int(count) for label, count in zip(photos.labels, y.sum(axis=0), strict=True)}
    inherited = {k: v for k, v in head.contract.provenance.items() if k in _INHERITED}
    return replace(
        head.contract,
        labels=photos.labels,
        thresholds=(0.5,) * len(photos.labels),
        calibration=None,
        name=name,
        provenance={
            **inherited,
            "adapted_from": head.contract.name,
            "adapted_from_graph_sha256": graph_digest(head.path),
            "method": _METHOD.format(head.contract.name) + (_WITH_OLD if knows else ""),
            "images": int(chosen.fitted.sum()),
            "strength": chosen.adapted.strength,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "thresholds": {"rule": "f1", "labels": figures.dataset, "images": int(chosen.fitted.sum())},
        },
        measured=Measured(
            float(np.mean([row.after for row in figures.rows])),
            EQUATION_6,
            figures.dataset,
            len(y),
            {k: ap.get(k) for k in photos.labels},
            support,
        ),
    )


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0.0, -z))


def _verify(content: bytes, chosen: Candidate, final: Head) -> None:
    """Compare the file's answers on a few photographs with the layer's: nothing is written that differs."""
    pixels, places = [], []
    for place, row in enumerate(chosen.features.rows[:_CHECKED]):
        image = load_image(row.path, chosen.base.contract.input)
        if not isinstance(image, Failure):
            pixels.append(image.pixels)
            places.append(place)
    if not pixels:
        return
    expected = 1 / (1 + np.exp(-final.logits(chosen.features.vectors[places])))
    difference = float(np.abs(answers(content, np.stack(pixels)) - expected).max())
    if difference > _TOLERANCE:
        raise DataError(
            f"the adapted file answers differently from what was fitted (by {difference:.3f}); nothing was written; "
            "delete the folder of features and try again"
        )
