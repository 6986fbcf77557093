"""What the decoder changes in a model's output: the same photographs decoded in full and at a JPEG's own scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import DataError, ImageError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.evaluation.thresholds import binarize
from mineral_batch.images.limits import read_file
from mineral_bench.report import Table
from mineral_bench.studies.accuracy import difference_interval
from mineral_bench.studies.decode import CANDIDATES, OURS, REFERENCE, SMALLEST, psnr
from mineral_export.verify.samples import image_files, labeled_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools
    from mineral_bench.studies.accuracy import Candidate

#: In the order of the table.
DECODERS = (REFERENCE, OURS, SMALLEST)


def compare(
    model: Candidate, photos: Sequence[Path], labels: Path | None = None, split: str | None = None
) -> tuple[Table, dict[str, Any]]:
    """Return one row per decoder, and the same for JSON.

    Args:
        model: open.
        photos: files and folders; one folder if there are labels.
        labels: see `mineral_batch.evaluation.labels.read_labels`; None to leave mAP out.
        split: only these rows of them.

    Raises:
        DataError: if no photograph can be read, or none has labels.
    """
    if labels:
        data = labeled_images(labels, model.contract.labels, photos[0], split)
        predictions = predict(model, data.paths, data.truth)
    else:
        predictions = predict(model, image_files(photos))
    changes = [change(name, predictions) for name in DECODERS]
    return table(changes, predictions), figures(changes, predictions)


@dataclass(frozen=True)
class DecoderPredictions:
    """A model's predictions for the same photographs by each decoder.

    Attributes:
        probabilities: decoder -> (N, L).
        psnr: decoder -> (N,) dB against the full decode; infinite where the pixels are identical.
        thresholds: (L,) of the model.
        truth: (N, L) bool; None without labels.
        unreadable: how many photographs could not be read.
    """

    probabilities: Mapping[str, NDArray[np.float64]]
    psnr: Mapping[str, NDArray[np.float64]]
    thresholds: NDArray[np.float64]
    truth: Bools | None
    unreadable: int


def predict(model: Candidate, paths: Sequence[Path], truth: Bools | None = None) -> DecoderPredictions:
    """Predict photographs once for each decoder.

    Args:
        model: open.
        paths: N files.
        truth: (N, L) bool, if it is known.

    Raises:
        DataError: if none can be read.
    """
    said: list[NDArray[np.float64]] = []
    near: list[list[float]] = []
    read: list[int] = []
    for index, path in enumerate(paths):
        try:
            content = read_file(path)
            found = [CANDIDATES[name].run(content, model.contract.input) for name in DECODERS]
        except (OSError, ImageError):
            continue
        read.append(index)
        near.append([psnr([pixels], [found[0]]) for pixels in found])
        said.append(np.concatenate([model.predict(pixels[None]) for pixels in found]).astype(np.float64))
    if not read:
        raise DataError("none of the photographs can be read")
    return DecoderPredictions(
        probabilities={name: np.stack(said)[:, column] for column, name in enumerate(DECODERS)},
        psnr={name: np.array(near)[:, column] for column, name in enumerate(DECODERS)},
        thresholds=np.array(model.contract.thresholds),
        truth=None if truth is None else truth[read],
        unreadable=len(paths) - len(read),
    )


@dataclass(frozen=True)
class Change:
    """What a decoder changes against the full decode.

    Attributes:
        decoder: its name.
        photographs: how many have other pixels.
        psnr: median and lowest of those, dB; infinite if there are none.
        largest: difference of a probability.
        mean: difference of the probabilities of those photographs; 0 if there are none.
        decisions: how many fall on the other side of the model's threshold.
        mean_ap: by equation 6; None without labels.
        difference: mAP minus the full decode's, and its 95% interval; None without labels.
    """

    decoder: str
    photographs: int
    psnr: tuple[float, float]
    largest: float
    mean: float
    decisions: int
    mean_ap: float | None = None
    difference: tuple[float, float, float] | None = None


def change(name: str, predictions: DecoderPredictions, resamples: int = 200) -> Change:
    """Compare one decoder with the full decode; `resamples` are the bootstrap's."""
    found, exact, truth = predictions.probabilities[name], predictions.probabilities[REFERENCE], predictions.truth
    near, apart = predictions.psnr[name], np.abs(found - exact)
    other = np.isfinite(near)
    decisions = binarize(found, predictions.thresholds) != binarize(exact, predictions.thresholds)
    accuracy: dict[str, Any] = {}
    if truth is not None:
        mean_ap, base = (mean_average_precision(scores, truth).mean for scores in (found, exact))
        interval = difference_interval(found, exact, truth, resamples)
        accuracy = {"mean_ap": mean_ap, "difference": (mean_ap - base, *interval)}
    return Change(
        decoder=name,
        photographs=int(other.sum()),
        psnr=(float(np.median(near[other])), float(near[other].min())) if other.any() else (math.inf, math.inf),
        largest=float(apart.max()),
        mean=float(apart[other].mean()) if other.any() else 0.0,
        decisions=int(decisions.sum()),
        **accuracy,
    )


def table(found: Sequence[Change], predictions: DecoderPredictions) -> Table:
    """Return one row per decoder; mAP in points of 100."""
    columns = [
        "decoder",
        "photographs with other pixels",
        "their PSNR, dB: median, lowest",
        "difference of a probability: largest, mean of those photographs",
        "decisions that differ",
    ]
    columns += ["mAP", "against the full decode"] if predictions.truth is not None else []
    read, labels = predictions.probabilities[REFERENCE].shape
    note = (
        f"{read} photographs, {predictions.unreadable} more could not be read; {read * labels} decisions at the "
        f"model's thresholds. A JPEG is scaled by its decoder where that leaves it no smaller than the model's input "
        f"({SMALLEST}) or than twice that ({OURS}); every other photograph is decoded in full."
    )
    return Table("What decoding at a JPEG's own scales changes", columns, list(map(_row, found)), [note])


def _row(one: Change) -> tuple[object, ...]:
    near = "identical" if math.isinf(one.psnr[0]) else "{:.1f}, {:.1f}".format(*one.psnr)
    apart = f"{one.largest:.2g}, {one.mean:.2g}"
    if one.mean_ap is None or one.difference is None:
        return one.decoder, one.photographs, near, apart, one.decisions
    points = "{:+.2f} ({:+.2f} to {:+.2f})".format(*(100 * value for value in one.difference))
    return one.decoder, one.photographs, near, apart, one.decisions, f"{100 * one.mean_ap:.2f}", points


def figures(found: Sequence[Change], predictions: DecoderPredictions) -> dict[str, Any]:
    """Return the figures for JSON; null for an infinite PSNR."""
    changed = [vars(one) | {"psnr": [None if math.isinf(value) else value for value in one.psnr]} for one in found]
    return {"photographs": len(predictions.psnr[REFERENCE]), "unreadable": predictions.unreadable, "decoders": changed}
