"""mAP of every form of a model on the same labelled photographs, with what each form loses.

All artefacts get the very same pixels, so a difference is the artefact's own: its precision, its engine, its export.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mineral_batch.engines.registry import choose_backend
from mineral_batch.errors import BackendError, DataError
from mineral_batch.evaluation.calibration import ECE_DEFINITION, probability_scores
from mineral_batch.evaluation.labels import (
    match_paths,
    name_labels,
    of_split,
    read_labels,
    require_known,
)
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6, MeanAP, bootstrap_interval, mean_average_precision
from mineral_batch.evaluation.thresholds import binarize
from mineral_batch.images.decode import load_image
from mineral_batch.images.discover import find_images
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.results.predictions import indicator
from mineral_batch.types import Failure
from mineral_bench.report import Table, names_apart, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Bools
    from mineral_batch.model.calibration import ProbabilityScores
    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Pixels, Probabilities

#: (backend, precision) that an ONNX file is tried on; those that do not work here are named in a note.
ROADS = (
    ("onnx-cpu", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("onnx-cuda", "auto"),
)
TORCH = "torch, float32"
_BATCH = 16


class Answers(Protocol):
    """Anything that maps (N, H, W, 3) uint8 to (N, L) probabilities."""

    def __call__(self, pixels: Pixels, /) -> Probabilities:
        """Answer one batch."""
        ...


@dataclass(frozen=True)
class Artefact:
    """One form of a model, open.

    Attributes:
        name: file and engine; of no two the same.
        size: of the file, bytes.
        contract: its own.
        answer: the engine.
    """

    name: str
    size: int
    contract: ModelContract
    answer: Answers


@dataclass(frozen=True)
class Labelled:
    """Photographs with their labels.

    Attributes:
        paths: N files.
        labels: L names.
        truth: (N, L) bool.
        missing: labelled photographs that are not there.
    """

    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    truth: Bools
    missing: int


def read_labelled(table: Path, root: Path, split: str | None, labels: Sequence[str]) -> Labelled:
    """Match a table's rows (see `mineral_batch.evaluation.labels.read_labels`) with the photographs under a folder.

    Raises:
        DataError: if nothing matches, or a label is none of the model's.
    """
    rows, _ = name_labels(of_split(read_labels(table), split, table), labels)
    require_known(rows, labels, table, "the model does not know")
    found = [path for path in find_images([root]) if not isinstance(path, Failure)]
    matches = match_paths([str(path) for path in found], [row.path for row in rows])
    matches.log(list(map(str, found)))
    pairs = [(found[matches.index[row.path]], row) for row in rows if row.path in matches.index]
    if not pairs:
        chosen = f" of split {split}" if split else ""
        raise DataError(f"none of the {len(rows)} photographs{chosen} in {table} is under {root}")
    truth = indicator([row.labels for _, row in pairs], labels)
    return Labelled(tuple(path for path, _ in pairs), tuple(labels), truth, len(rows) - len(pairs))


def roads_of(backends: Sequence[str]) -> list[tuple[str, str]]:
    """(backend, precision) to try for backends that were named; all of `ROADS` if none was."""
    named = {name: [road for road in ROADS if road[0] == name] or [(name, "auto")] for name in backends}
    return [road for roads in named.values() for road in roads] or list(ROADS)


def open_artefacts(
    paths: Sequence[Path], roads: Sequence[tuple[str, str]], stack: ExitStack
) -> tuple[list[Artefact], list[str]]:
    """Every artefact on every engine that works here, and why the others do not.

    Args:
        paths: checkpoint folders and model files.
        roads: (backend, precision) for the model files.
        stack: closes the engines.

    Raises:
        DataError: if none works, or two have different labels.
    """
    opened: list[Artefact] = []
    notes = []
    for path, name in zip(paths, numbered(names_apart(paths)), strict=True):
        if path.is_dir():
            opened.append(_checkpoint(path, name))
            continue
        for backend, precision in roads:
            try:
                opened.append(_on_engine(path, name, backend, precision, stack))
            except BackendError as error:
                notes.append(f"Not here: {name} on {backend} in {precision}: {error}.")
    if not opened:
        raise DataError("no artefact can be opened here: " + " ".join(notes))
    other = next((one for one in opened if one.contract.labels != opened[0].contract.labels), None)
    if other:
        raise DataError(f"{other.name} and {opened[0].name} have different labels: they are not of one model")
    return opened, notes


def _checkpoint(folder: Path, name: str) -> Artefact:
    from mineral_export.deployable import Deployable
    from mineral_train.training.checkpoint import WEIGHTS, load_checkpoint

    model, contract = load_checkpoint(folder)
    answer = Deployable(model, contract.input).infer
    return Artefact(f"{name}, {TORCH}", (folder / WEIGHTS).stat().st_size, contract, answer)


def _on_engine(path: Path, name: str, backend: str, precision: str, stack: ExitStack) -> Artefact:
    contract = read_contract(path)
    engine = choose_backend(path, backend, precision=precision).backend
    stack.enter_context(closing(engine))
    name = f"{name}, {engine.name} ({engine.device})"
    return Artefact(name, path.stat().st_size, contract, lambda pixels: engine.infer(pixels).copy())


@dataclass(frozen=True)
class Scored:
    """What the artefacts said.

    Attributes:
        scores: of each artefact, in their order, (N, L) probabilities.
        truth: (N, L) bool of the pictures that could be read.
        unreadable: how many could not.
    """

    scores: tuple[NDArray[np.float64], ...]
    truth: Bools
    unreadable: int


def score(artefacts: Sequence[Artefact], data: Labelled) -> Scored:
    """Ask all artefacts about all pictures, each picture decoded once for each kind of input.

    Raises:
        DataError: if no picture can be read.
    """
    by_input: dict[InputSpec, list[int]] = defaultdict(list)
    for place, one in enumerate(artefacts):
        by_input[one.contract.input].append(place)
    parts: list[list[Probabilities]] = [[] for _ in artefacts]
    read: list[int] = []
    for spec, places in by_input.items():
        read = []
        for indices, pixels in _batches(data.paths, spec):
            read += indices
            for place in places:
                parts[place].append(artefacts[place].answer(pixels))
    if not read:
        raise DataError("none of the photographs can be read")
    scores = tuple(np.concatenate(answers).astype(np.float64) for answers in parts)
    return Scored(scores, data.truth[read], len(data.paths) - len(read))


def _batches(paths: Sequence[Path], spec: InputSpec) -> Iterator[tuple[list[int], Pixels]]:
    """The readable pictures, with their places."""
    for start in range(0, len(paths), _BATCH):
        images = [(start + i, load_image(path, spec)) for i, path in enumerate(paths[start : start + _BATCH])]
        good = [(index, image.pixels) for index, image in images if not isinstance(image, Failure)]
        if good:
            yield [index for index, _ in good], np.stack([pixels for _, pixels in good])


@dataclass(frozen=True)
class Accuracy:
    """Of one artefact.

    Attributes:
        name: of the artefact.
        size: bytes.
        mean_ap: by equation 6.
        interval: 95 %, from the choice of pictures.
        difference: mAP less the first artefact's.
        difference_interval: 95 %, both judged on the same resampled pictures.
        agreement: share of all decisions at the thresholds that are the first artefact's.
        largest: difference of a probability from the first artefact's.
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


def judge(artefacts: Sequence[Artefact], scored: Scored, resamples: int = 1000) -> list[Accuracy]:
    """Every artefact's mAP, and its loss against the first one."""
    reference, thresholds = scored.scores[0], np.array(artefacts[0].contract.thresholds)
    expected, base = binarize(reference, thresholds), _average(artefacts[0].name, reference, scored.truth)
    found = []
    for one, scores in zip(artefacts, scored.scores, strict=True):
        mean_ap = _average(one.name, scores, scored.truth)
        found.append(
            Accuracy(
                name=one.name,
                size=one.size,
                mean_ap=mean_ap,
                interval=bootstrap_interval(scores, scored.truth, resamples),
                difference=mean_ap.mean - base.mean,
                difference_interval=difference_interval(scores, reference, scored.truth, resamples // 5),
                agreement=float((binarize(scores, thresholds) == expected).mean()),
                largest=float(np.abs(scores - reference).max()),
                calibration=probability_scores(scores, scored.truth),
            )
        )
    return found


def _average(name: str, scores: NDArray[np.float64], truth: Bools) -> MeanAP:
    try:
        return mean_average_precision(scores, truth)
    except DataError as error:  # a model that gives NaN: which one?
        raise DataError(f"{name}: {error}") from None


def difference_interval(
    scores: NDArray[np.float64], reference: NDArray[np.float64], truth: Bools, resamples: int, seed: int = 0
) -> tuple[float, float]:
    """95 % basic bootstrap interval of the difference of two mAPs, (N, L) each, over the same resampled pictures.

    Far narrower than the intervals of the two figures: hard pictures are hard for both. NaN both without a resample.
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


def table(found: Sequence[Accuracy], scored: Scored, data: Labelled, notes: Sequence[str]) -> Table:
    """One row per artefact; mAP in points of 100."""
    first = found[0]
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
        for one in found
    ]
    columns = (
        "artefact",
        "MB",
        "mAP",
        "against the first",
        "equal decisions, %",
        "largest difference",
        "ECE",
        "log loss",
    )
    labels = len(data.labels) - len(first.mean_ap.empty)
    heading = [
        f"mAP in points, 95 % bootstrap interval: {DEFINITIONS[EQUATION_6]}. {len(scored.truth)} photographs, "
        f"{labels} of {len(data.labels)} labels occur; {scored.unreadable} could not be read, {data.missing} are "
        "in the table and not in the folder. Differences on the same resampled photographs. "
        f"{ECE_DEFINITION[0].upper()}{ECE_DEFINITION[1:]}."
    ]
    return Table("Mean average precision", columns, rows, [*heading, *notes])


def _points(value: float, low: float, high: float, sign: str = "") -> str:
    interval = "" if np.isnan(low) else f" ({100 * low:{sign}.2f} to {100 * high:{sign}.2f})"
    return f"{100 * value:{sign}.2f}{interval}"


def figures(found: Sequence[Accuracy], scored: Scored) -> dict[str, Any]:
    """For JSON."""
    return {
        "definition": EQUATION_6,
        "photographs": len(scored.truth),
        "unreadable": scored.unreadable,
        "artefacts": [vars(one) | _in_json(one) for one in found],
    }


def _in_json(one: Accuracy) -> dict[str, Any]:
    """What JSON has no form for; null where there is no interval."""
    intervals = {"interval": one.interval, "difference_interval": one.difference_interval}
    told = {name: None if np.isnan(interval).any() else interval for name, interval in intervals.items()}
    return told | {"mean_ap": _mean_ap(one.mean_ap), "calibration": asdict(one.calibration)}


def _mean_ap(found: MeanAP) -> dict[str, Any]:
    per_label = [None if np.isnan(value) else value for value in found.per_label.tolist()]
    return {"mean": found.mean, "per_label": per_label, "support": found.support.tolist()}
