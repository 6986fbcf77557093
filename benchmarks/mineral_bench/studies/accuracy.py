"""mAP of every form of a model on the same labeled images, and what each form loses.

All artifacts get the same pixels, so a difference is the artifact's own: its precision, its engine, its export.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.engines.registry import engine_names
from mineral_batch.errors import BackendError, DataError
from mineral_batch.evaluation.calibration import ECE_DEFINITION, probability_scores
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6, MeanAP, bootstrap_interval, mean_average_precision
from mineral_bench.report import Table, names_apart, numbered
from mineral_export.verify.artifacts import open_artifact, parse_artifact
from mineral_export.verify.parity import compare_probabilities
from mineral_export.verify.samples import decode_in_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools
    from mineral_batch.model.calibration import ProbabilityScores
    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Probabilities
    from mineral_export.verify.parity import Model
    from mineral_export.verify.samples import LabeledImages

#: (backend, precision) that an ONNX file is tried on; a note names those that do not work here.
ENGINES = (
    ("onnx-cpu", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("onnx-cuda", "auto"),
)
_BATCH = 16


@dataclass(frozen=True)
class Candidate:
    """An open form of a model.

    Attributes:
        name: file and engine, unique.
        size: of the file with the weights, bytes.
        contract: the model's.
        predict: (N, H, W, 3) uint8 to (N, L) probabilities.
    """

    name: str
    size: int
    contract: ModelContract
    predict: Model


def engines_of(backends: Sequence[str]) -> list[tuple[str, str]]:
    """Return the (backend, precision) pairs to try for these backends; all of `ENGINES` if there are none.

    Raises:
        DataError: if there is no backend of that name.
    """
    for name in backends:
        if name not in engine_names():
            raise DataError(f"no engine is called '{name}'; there are: {', '.join(engine_names())}")
    named = {name: [engine for engine in ENGINES if engine[0] == name] or [(name, "auto")] for name in backends}
    return [engine for engines in named.values() for engine in engines] or list(ENGINES)


def open_candidates(
    paths: Sequence[Path], engines: Sequence[tuple[str, str]], stack: ExitStack
) -> tuple[list[Candidate], list[str]]:
    """Open every artifact on every engine that works here; also returns why the others do not.

    Args:
        paths: checkpoint folders and model files.
        engines: (backend, precision) for the model files.
        stack: closes the engines.

    Raises:
        DataError: if none works, or two have different labels.
    """
    opened: list[Candidate] = []
    notes = []
    for path, name in zip(paths, numbered(names_apart(paths)), strict=True):
        for engine in [""] if path.is_dir() else [f"@{backend}:{precision}" for backend, precision in engines]:
            try:
                artifact = stack.enter_context(open_artifact(f"{path}{engine}"))
            except BackendError as error:
                backend, _, precision = engine[1:].partition(":")
                notes.append(f"Not here: {name} on {backend} in {precision}: {error}.")
                continue
            size = parse_artifact(path).weights.stat().st_size
            words = f"{name}, {artifact.backend.name} ({artifact.backend.device})"
            opened.append(Candidate(words, size, artifact.contract, artifact.predict))
    if not opened:
        raise DataError("no artifact can be opened here: " + " ".join(notes))
    other = next((one for one in opened if one.contract.labels != opened[0].contract.labels), None)
    if other:
        raise DataError(f"{other.name} and {opened[0].name} have different labels: they are not of one model")
    return opened, notes


@dataclass(frozen=True)
class Scored:
    """The candidates' predictions.

    Attributes:
        scores: (N, L) probabilities of each candidate, in their order.
        truth: (N, L) bool ground truth of the images that could be read.
        unreadable: number of images that could not.
    """

    scores: tuple[NDArray[np.float64], ...]
    truth: Bools
    unreadable: int


def score(candidates: Sequence[Candidate], data: LabeledImages) -> Scored:
    """Predict all images with all candidates; each image is decoded once for each kind of input.

    Raises:
        DataError: if no image can be read.
    """
    by_input: dict[InputSpec, list[int]] = defaultdict(list)
    for place, one in enumerate(candidates):
        by_input[one.contract.input].append(place)
    parts: list[list[Probabilities]] = [[] for _ in candidates]
    read: list[int] = []
    for spec, places in by_input.items():
        read = []
        for indices, pixels in decode_in_chunks(data.paths, spec, _BATCH):
            read += indices
            for place in places:
                parts[place].append(candidates[place].predict(pixels))
    if not read:
        raise DataError("none of the images can be read")
    scores = tuple(np.concatenate(batches).astype(np.float64) for batches in parts)
    return Scored(scores, data.truth[read], len(data.paths) - len(read))


@dataclass(frozen=True)
class Accuracy:
    """The accuracy of one candidate.

    Attributes:
        name: its name.
        size: bytes.
        mean_ap: by equation 6.
        interval: 95%, from the choice of images.
        difference: mAP minus the first candidate's.
        difference_interval: 95%, both on the same resampled images.
        agreement: share of all decisions at the thresholds that equal the first candidate's.
        largest: difference of a probability from the first candidate's.
        calibration: ECE, log loss and Brier score.
    """

    name: str
    size: int
    mean_ap: MeanAP
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    agreement: float
    largest: float
    calibration: ProbabilityScores


def evaluate(candidates: Sequence[Candidate], scored: Scored, resamples: int = 1000) -> list[Accuracy]:
    """Compute every candidate's mAP, and its loss against the first one."""
    reference, contract = scored.scores[0], candidates[0].contract
    base = _mean_ap(candidates[0].name, reference, scored.truth)
    results = []
    for one, scores in zip(candidates, scored.scores, strict=True):
        mean_ap = _mean_ap(one.name, scores, scored.truth)
        parity = compare_probabilities(reference, scores, None, "images", contract)
        results.append(
            Accuracy(
                name=one.name,
                size=one.size,
                mean_ap=mean_ap,
                interval=bootstrap_interval(scores, scored.truth, resamples),
                difference=mean_ap.mean - base.mean,
                difference_interval=difference_interval(scores, reference, scored.truth, resamples // 5),
                agreement=1 - parity.flips / parity.decisions,
                largest=parity.largest,
                calibration=probability_scores(scores, scored.truth),
            )
        )
    return results


def _mean_ap(name: str, scores: NDArray[np.float64], truth: Bools) -> MeanAP:
    try:
        return mean_average_precision(scores, truth)
    except DataError as error:  # a model that outputs NaN: which one?
        raise DataError(f"{name}: {error}") from None


def difference_interval(
    scores: NDArray[np.float64], reference: NDArray[np.float64], truth: Bools, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """Return the 95% basic bootstrap interval of the difference of two mAPs over the same resampled images.

    Far narrower than the intervals of the two mAPs: hard images are hard for both. NaN without resamples.
    """
    if np.array_equal(scores, reference):
        return 0.0, 0.0
    if resamples < 1:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    drawn = [_difference(scores, reference, truth, rng.integers(len(truth), size=len(truth))) for _ in range(resamples)]
    estimate = _difference(scores, reference, truth, np.arange(len(truth)))
    low, high = 2 * estimate - np.nanquantile(drawn, [0.975, 0.025])
    return float(low), float(high)


def _difference(
    scores: NDArray[np.float64], reference: NDArray[np.float64], truth: Bools, rows: NDArray[np.int64]
) -> float:
    one, other = (mean_average_precision(values[rows], truth[rows]).mean for values in (scores, reference))
    return one - other


def table(results: Sequence[Accuracy], scored: Scored, data: LabeledImages, notes: Sequence[str]) -> Table:
    """Return one row per candidate; mAP in points of 100."""
    first = results[0]
    rows = [
        (
            one.name,
            f"{one.size / 1e6:.1f}",
            _points(one.mean_ap.mean, *one.interval),
            "" if one is first else _points(one.difference, *one.difference_interval, sign="+"),
            "" if one is first else f"{100 * one.agreement:.3f}",
            "" if one is first else f"{one.largest:.1g}",
            f"{one.calibration.ece:.4f}",
            f"{one.calibration.log_loss:.4f}",
        )
        for one in results
    ]
    columns = (
        "artifact",
        "MB",
        "mAP",
        "against the first",
        "equal decisions, %",
        "largest difference",
        "ECE",
        "log loss",
    )
    total = data.truth.shape[1]
    labels = total - len(first.mean_ap.empty)
    heading = [
        f"mAP in points, 95% bootstrap interval: {DEFINITIONS[EQUATION_6]}. {len(scored.truth)} images, "
        f"{labels} of {total} labels occur; {scored.unreadable} could not be read, {data.missing} are "
        "in the table and not in the folder. Differences on the same resampled images. "
        f"{ECE_DEFINITION[0].upper()}{ECE_DEFINITION[1:]}."
    ]
    return Table("Mean average precision", columns, rows, [*heading, *notes])


def _points(value: float, low: float, high: float, sign: str = "") -> str:
    interval = "" if np.isnan(low) else f" ({100 * low:{sign}.2f} to {100 * high:{sign}.2f})"
    return f"{100 * value:{sign}.2f}{interval}"


def figures(results: Sequence[Accuracy], scored: Scored) -> dict[str, Any]:
    """Return the figures for JSON."""
    return {
        "definition": EQUATION_6,
        "photographs": len(scored.truth),
        "unreadable": scored.unreadable,
        "artifacts": [vars(one) | _in_json(one) for one in results],
    }


def _in_json(one: Accuracy) -> dict[str, Any]:
    """Return what JSON cannot hold as it is; null if there is no interval."""
    intervals = {"interval": one.interval, "difference_interval": one.difference_interval}
    written = {name: None if np.isnan(interval).any() else interval for name, interval in intervals.items()}
    return written | {"mean_ap": _mean_ap_figures(one.mean_ap), "calibration": asdict(one.calibration)}


def _mean_ap_figures(mean_ap: MeanAP) -> dict[str, Any]:
    per_label = [None if np.isnan(value) else value for value in mean_ap.per_label.tolist()]
    return {"mean": mean_ap.mean, "per_label": per_label, "support": mean_ap.support.tolist()}
