"""Where a model looks, from the maps that its own graph gives, and how far such maps can be believed.

A model exported with `mineral-export onnx --explain` answers, beside its probabilities, with a coarse map for each of
a picture's most probable labels. What these outputs are is JSON in the file's metadata (`mineral.explain`). The
graph's first output stays what it is without maps, so that every engine takes such a file for prediction.

A graph that ends with the mean over places and one linear layer, as that of the starter model, needs no such outputs:
its Grad-CAM follows from its last feature maps (see `mineral_batch.explain.cam`), and every label has a map.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageFilter, UnidentifiedImageError

from mineral_batch.engines.onnx_cpu import CPU, check_graph, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError, ContractError, DataError
from mineral_batch.explain.cam import activation_maps, find_tail, logits_of
from mineral_batch.images.decode import decode_image
from mineral_batch.images.geometry import visible_box
from mineral_batch.model.onnx_file import read_contract, read_metadata, with_outputs
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Pixels, Probabilities, Source

Heat = NDArray[np.float32]
Bools = NDArray[np.bool_]

#: The metadata key under which `MapSpec` travels.
MAPS_KEY = "mineral.explain"

GRAD_CAM, CROSS_ATTENTION = "grad-cam", "cross-attention"
METHODS = (GRAD_CAM, CROSS_ATTENTION)

_LOG_ERRORS = 3
# Of two probabilities that are computed in another order.
_SAME = 1e-4
_STEPS = 16


@dataclass(frozen=True)
class MapSpec:
    """What a graph's maps are.

    Attributes:
        method: of `METHODS`.
        grid: (rows, columns) of a map; it covers what the model sees of the picture.
        top: K, how many labels of a picture get one.
    """

    method: str
    grid: tuple[int, int]
    top: int

    def __post_init__(self) -> None:
        numbers = (*self.grid, self.top)
        if self.method not in METHODS or len(numbers) != 3 or any(type(n) is not int or n < 1 for n in numbers):
            raise ContractError(
                f"a model's maps need a method ({', '.join(METHODS)}), a grid of two and a top of one positive "
                f"number, got {self}: export it again with mineral-export onnx --explain"
            )

    def to_json(self) -> str:
        """One line that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MapSpec:
        """Read and check.

        Raises:
            ContractError: if it is no such record.
        """
        try:
            record = json.loads(text)
            return cls(record["method"], tuple(record["grid"]), record["top"])
        except (ValueError, KeyError, TypeError) as error:
            raise ContractError(
                f"the model's record of its maps cannot be read ({error!r}): "
                f"export it again with mineral-export onnx --explain"
            ) from None


class Answer(NamedTuple):
    """A graph's answer to a batch.

    Attributes:
        probabilities: (N, L) float32.
        labels: (N, K) int64, the most probable labels, the most probable first.
        maps: (N, K, rows, columns) float32, each 0..1 with its largest value 1, or all zeros.
    """

    probabilities: Probabilities
    labels: NDArray[np.int64]
    maps: Heat


class Explainer:
    """An open model with maps. Several threads may ask it at once.

    Args:
        session: of ONNX Runtime.
        contract: the model's.
        maps: what its maps are.
    """

    def __init__(self, session: Any, contract: ModelContract, maps: MapSpec) -> None:
        check_graph(session, contract)
        self.contract = contract
        self.maps = maps
        self._session = session
        self._input = session.get_inputs()[0].name

    def infer(self, pixels: Pixels) -> Answer:
        """(N, H, W, 3) uint8 RGB -> probabilities, labels and maps.

        Raises:
            BackendError: with ONNX Runtime's own words, if the run fails.
        """
        try:
            outputs = self._session.run(None, {self._input: pixels})
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"the maps of a batch of {len(pixels)} failed: {first_line(error)}") from error
        return self._answer(*outputs)

    def _answer(self, probabilities: Probabilities, labels: NDArray[np.int64], maps: Heat, *_: object) -> Answer:
        return Answer(probabilities, labels, maps)

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PooledExplainer(Explainer):
    """Of a graph whose outputs are its probabilities (N, L), and the three parts of its `pooling.Tail`."""

    def _answer(self, probabilities: Probabilities, features: Heat, weights: Heat, *_: object) -> Answer:  # type: ignore[override]
        labels = np.argsort(-probabilities, axis=1, kind="stable")
        maps = np.take_along_axis(activation_maps(features, weights), labels[..., None, None], axis=1)
        return Answer(probabilities, labels, maps)


def open_explainer(path: Path) -> Explainer:
    """Open a model with maps on the processor, one thread a call.

    Raises:
        BackendError: if ONNX Runtime is not installed or refuses the model.
        ContractError: if the file is no model, or one without maps.
    """
    contract = read_contract(path)
    text = read_metadata(path).get(MAPS_KEY)
    if text is None:
        return _open_pooled(path, contract)
    session, maps = _session(path), MapSpec.from_json(text)
    _check_maps(session, maps)
    return Explainer(session, contract, maps)


def _session(path: Path, content: bytes | None = None) -> Any:
    runtime = onnxruntime_with(CPU)
    options = runtime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = 1
    return make_session(runtime, path, options, [(CPU, {})], content)


def _check_maps(session: Any, maps: MapSpec) -> None:
    shapes = [list(one.shape[1:]) for one in session.get_outputs()[1:3]]
    if shapes != [[maps.top], [maps.top, *maps.grid]]:
        raise ContractError(
            f"the model's graph gives maps of the shapes {shapes}, its record says {maps}: "
            f"export it again with mineral-export onnx --explain"
        )


def _open_pooled(path: Path, contract: ModelContract) -> Explainer:
    """Open a model whose maps follow from its last layers."""
    tail = find_tail(path)
    if tail is None:
        raise _no_maps(path)
    session = _session(path, with_outputs(path, tail))
    probe = np.random.default_rng(0).integers(0, 256, (1, *contract.input.shape), np.uint8)
    probabilities, features, weights, bias = session.run(None, {session.get_inputs()[0].name: probe})
    # The names of the last operations are not all that they do: only a graph that keeps to the formula has the maps.
    if features.ndim != 4 or not _is_same(_sigmoid(logits_of(features, weights, bias)), probabilities):
        raise _no_maps(path)
    return _PooledExplainer(session, contract, MapSpec(GRAD_CAM, features.shape[2:], len(contract.labels)))


def _sigmoid(logits: Heat) -> Heat:
    return np.exp(-np.logaddexp(0, -logits))


def _is_same(ours: Heat, theirs: Probabilities) -> bool:
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= _SAME)


def _no_maps(path: Path) -> ContractError:
    return ContractError(
        f"{path} gives no maps of where it looks: export its checkpoint again with "
        f"`mineral-export onnx CHECKPOINT --explain`"
    )


@dataclass(frozen=True)
class LabelMap:
    """Where the model looks for one mineral in one picture.

    Attributes:
        label: the mineral.
        probability: 0..1.
        present: whether that is at or above the model's threshold.
        heat: (rows, columns) float32, 0..1, over what the model sees of the picture.
    """

    label: str
    probability: float
    present: bool
    heat: Heat


@dataclass(frozen=True)
class Explanation:
    """One picture's maps.

    Attributes:
        path: as `mineral_batch.images.discover` names it.
        width: of the upright photograph, pixels.
        height: of the upright photograph, pixels.
        pixels: (H, W, 3) uint8, what the model was given.
        maps: of the most probable labels, the most probable first.
    """

    path: str
    width: int
    height: int
    pixels: Pixels
    maps: tuple[LabelMap, ...]


def explain(explainer: Explainer, source: Source) -> Explanation | Failure:
    """Read, decode and explain one picture; what cannot be read is a `Failure`.

    Raises:
        BackendError: if the engine fails.
    """
    contract = explainer.contract
    image = decode_image(source.name, source.read, contract.input)
    if isinstance(image, Failure):
        return image
    answer = explainer.infer(image.pixels[None])
    if not (np.isfinite(answer.probabilities).all() and np.isfinite(answer.maps).all()):
        return Failure(source.name, "infer", "the model's answer is not a number")
    maps = tuple(_label_maps(contract, answer))
    return Explanation(source.name, image.width, image.height, image.pixels, maps)


def _label_maps(contract: ModelContract, answer: Answer) -> Iterator[LabelMap]:
    probabilities = answer.probabilities[0].tolist()
    for label, heat in zip(answer.labels[0].tolist(), answer.maps[0], strict=True):
        value = probabilities[label]
        yield LabelMap(contract.labels[label], value, value >= contract.thresholds[label], heat)


def enlarged(heat: Heat, size: tuple[int, int]) -> Heat:
    """A map at `size` (width, height), bilinear, each of its values in the middle of its own patch; (height, width)."""
    return np.asarray(PILImage.fromarray(heat).resize(size, PILImage.Resampling.BILINEAR), np.float32)


def peak(heat: Heat, size: tuple[int, int], spec: InputSpec) -> tuple[float, float] | None:
    """(x, y) in an upright picture of `size` (width, height) where its map is largest; None where it is all zeros.

    The middle of the largest patch: between patches there is nothing to know.
    """
    if not heat.max() > 0:
        return None
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    return _in_picture((column + 0.5) / heat.shape[1], (row + 0.5) / heat.shape[0], size, spec)


def middle(size: tuple[int, int], spec: InputSpec) -> tuple[float, float]:
    """(x, y) of the middle of what the model sees: where photographers put the mineral, the baseline of `Pointing`."""
    return _in_picture(0.5, 0.5, size, spec)


def _in_picture(across: float, down: float, size: tuple[int, int], spec: InputSpec) -> tuple[float, float]:
    """From parts of what the model sees, 0..1, to pixels of the picture."""
    left, top, right, bottom = visible_box(size, spec)
    return float(left + across * (right - left)), float(top + down * (bottom - top))


class Pointing(NamedTuple):
    """One map's turn in the pointing game (Zhang et al. 2016, section 4.1), without their tolerance of 15 pixels.

    Attributes:
        hit: whether the map is largest on the mineral; False for a map of zeros.
        centre: whether the middle of the picture lies on it: what a map that knows nothing scores.
        anywhere: the mineral's share of what the model sees: what a random point scores.
    """

    hit: bool
    centre: bool
    anywhere: float


def point(heat: Heat, mask: Bools, spec: InputSpec) -> Pointing:
    """Play one turn.

    Args:
        heat: (rows, columns).
        mask: (height, width) of the upright picture, True on the mineral.
        spec: the model's input.
    """
    size = mask.shape[1], mask.shape[0]
    left, top, right, bottom = (round(edge) for edge in visible_box(size, spec))
    at = peak(heat, size, spec)
    return Pointing(
        hit=at is not None and _is_on(mask, at),
        centre=_is_on(mask, middle(size, spec)),
        anywhere=float(mask[top:bottom, left:right].mean()),
    )


def _is_on(mask: Bools, at: tuple[float, float]) -> bool:
    x, y = at
    return bool(mask[min(int(y), mask.shape[0] - 1), min(int(x), mask.shape[1] - 1)])


def read_masks(path: Path) -> dict[str, Bools]:
    """Where each mineral is, from a mask of `mineral-train synth`: name -> (height, width), for those that are seen.

    Such a mask is a PNG with a palette whose text `Values` says `0=none;1=agate;...`.

    Raises:
        DataError: if it is no such mask.
    """
    try:
        with PILImage.open(path) as picture:
            text, mode, values = str(picture.info.get("Values", "")), picture.mode, np.array(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"cannot read the mask {path}: {error}") from None
    names = dict(entry.split("=", 1) for entry in text.split(";") if "=" in entry)
    if mode != "P" or not names:
        raise DataError(f"{path} is not a mask of mineral-train synth: it needs a palette and a text `Values`")
    seen = {int(value) for value in np.unique(values)} - {0}
    return {names[str(value)]: values == value for value in sorted(seen) if str(value) in names}


def deletion(
    answer: Callable[[Pixels], Probabilities], pixels: Pixels, heat: Heat, label: int, spec: InputSpec
) -> float:
    """How fast a probability falls while the picture is painted over where the map is largest first; lower is better.

    The area under the curve of Petsiuk et al. 2018 (RISE, section 4.3), 0..1, in 16 steps. What is painted over gets
    the mean colour that the model's input is centred on.

    Args:
        answer: the model, (N, H, W, 3) uint8 to (N, L).
        pixels: (H, W, 3) uint8, the picture at the model's input size.
        heat: (rows, columns).
        label: index.
        spec: the model's input.
    """
    grey = np.broadcast_to(np.array([255 * mean for mean in spec.mean]).round().astype(np.uint8), pixels.shape)
    return _area(answer, pixels, grey, heat, label)


def insertion(
    answer: Callable[[Pixels], Probabilities], pixels: Pixels, heat: Heat, label: int, spec: InputSpec
) -> float:
    """How fast a probability rises while a blurred picture is made sharp in the map's order; higher is better.

    As `deletion`; blurred by a Gaussian of a twentieth of the width, so that neither start nor edges look like
    something else.
    """
    radius = spec.width / 20
    blurred = np.asarray(PILImage.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))
    return _area(answer, blurred, pixels, heat, label)


def _area(answer: Callable[[Pixels], Probabilities], start: Pixels, end: Pixels, heat: Heat, label: int) -> float:
    """Under the probability of a label, while `start` becomes `end` in the order of the map."""
    height, width, _ = start.shape
    order = np.argsort(-enlarged(heat, (width, height)), axis=None, kind="stable")
    rank = np.empty(order.size)
    rank[order] = np.arange(order.size) / order.size
    changed = rank.reshape(1, height, width, 1) < np.linspace(0, 1, _STEPS + 1).reshape(-1, 1, 1, 1)
    curve = answer(np.where(changed, end, start))[:, label]
    return float(np.trapezoid(curve, dx=1 / _STEPS))


def centre_first(grid: Sequence[int]) -> Heat:
    """A map (rows, columns) that knows nothing of the picture, largest in the middle: what others must beat."""
    rows, columns = (np.abs(np.linspace(-1, 1, 2 * n + 1)[1::2]) for n in grid)
    heat: Heat = (1 - np.hypot(rows[:, None], columns[None, :]) / np.sqrt(2)).astype(np.float32)
    return heat
