"""An open model that gives maps of where it looks, in ONNX Runtime on the CPU.

A graph exported with `--explain` gives its maps itself. A graph that ends with mean pooling and one linear layer, like
that of the starter model, needs no such export: its maps follow from its last features (see `explain.cam`), and every
label has one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from mineral_batch.engines.onnx_session import CPU, check_graph, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError, ContractError
from mineral_batch.explain.cam import activation_maps, find_pooled_head, pooled_logits
from mineral_batch.explain.maps import GRAD_CAM, MAPS_KEY, Explanation, LabelMap, MapSpec
from mineral_batch.images.decode import decode_image
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.model.onnx_file import read_contract, read_metadata, with_outputs
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from mineral_batch.explain.maps import Heat
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities, Source

_LOG_ERRORS = 3
# Of two logits computed in another order, relative to the largest.
_SAME = 1e-4


class MapOutput(NamedTuple):
    """A graph's output for a batch.

    Attributes:
        probabilities: (N, L) float32.
        labels: (N, K) int64, the most probable labels, in that order.
        maps: (N, K, rows, columns) float32, each 0..1 with its largest value 1, or all zeros.
    """

    probabilities: Probabilities
    labels: NDArray[np.int64]
    maps: Heat


class Explainer:
    """An open model with maps. Several threads may use it at once.

    Args:
        session: of ONNX Runtime.
        contract: the model's.
        maps: the kind of its maps.
        outputs: names of the graph's outputs from which the maps follow. It may have others, such as a familiarity.
    """

    def __init__(self, session: Any, contract: ModelContract, maps: MapSpec, outputs: Sequence[str]) -> None:
        check_graph(session, contract)
        self._outputs = list(outputs)
        self.contract = contract
        self.maps = maps
        self._session = session
        self._input = session.get_inputs()[0].name

    def infer(self, pixels: Pixels) -> MapOutput:
        """Return probabilities, labels and maps of (N, H, W, 3) uint8 RGB.

        Raises:
            BackendError: with ONNX Runtime's message, if the run fails.
        """
        try:
            outputs = self._session.run(self._outputs, {self._input: pixels})
        except Exception as error:  # its exceptions have no common base class
            raise BackendError(f"cannot make the maps of a batch of {len(pixels)}: {first_line(error)}") from error
        return self._map_output(*outputs)

    def _map_output(self, probabilities: Probabilities, labels: NDArray[np.int64], maps: Heat) -> MapOutput:
        return MapOutput(probabilities, labels, maps)

    def close(self) -> None:
        """Drop the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PooledExplainer(Explainer):
    """Of a graph that gives its probabilities, and features and weights of its `PooledHead`."""

    def _map_output(self, probabilities: Probabilities, features: Heat, weights: Heat) -> MapOutput:  # type: ignore[override]
        labels = np.argsort(-probabilities, axis=1, kind="stable")
        maps = np.take_along_axis(activation_maps(features, weights), labels[..., None, None], axis=1)
        return MapOutput(probabilities, labels, maps)


def open_explainer(path: Path) -> Explainer:
    """Open a model with maps on the CPU, one thread per call.

    Raises:
        BackendError: if ONNX Runtime is not installed or refuses the model.
        ContractError: if the file is not a model, or not one with maps.
    """
    contract = read_contract(path)
    text = read_metadata(path).get(MAPS_KEY)
    if text is None:
        return _open_pooled(path, contract)
    session, maps = _session(path), MapSpec.from_json(text)
    _check_maps(session, maps)
    return Explainer(session, contract, maps, [one.name for one in session.get_outputs()[:3]])


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
            f"the model's graph gives maps of the shapes {shapes}, but its metadata says {maps}: "
            f"export it again with mineral-export onnx --explain"
        )


def _open_pooled(path: Path, contract: ModelContract) -> Explainer:
    """Open a model whose maps follow from its last layers."""
    head = find_pooled_head(path)
    if head is None:
        raise _no_maps(path)
    session = _session(path, with_outputs(path, head))
    probe = np.random.default_rng(0).integers(0, 256, (1, *contract.input.shape), np.uint8)
    features, weights, bias, logits = session.run(list(head), {session.get_inputs()[0].name: probe})
    # Operators have attributes that change what they compute: only a graph that keeps to the formula has these maps.
    if features.ndim != 4 or not _is_same(pooled_logits(features, weights, bias), logits):
        raise _no_maps(path)
    maps = MapSpec(GRAD_CAM, features.shape[2:], len(contract.labels))
    return _PooledExplainer(session, contract, maps, [session.get_outputs()[0].name, head.features, head.weights])


def _is_same(ours: Heat, theirs: Heat) -> bool:
    return ours.shape == theirs.shape and bool(np.abs(ours - theirs).max() <= _SAME * max(1.0, np.abs(theirs).max()))


def _no_maps(path: Path) -> ContractError:
    return ContractError(
        f"{path} gives no maps of where it looks: export its checkpoint again with "
        f"`mineral-export onnx CHECKPOINT --explain`"
    )


def explain(explainer: Explainer, source: Source, *, max_pixels: int = MAX_PIXELS) -> Explanation | Failure:
    """Read, decode and explain one image; one that cannot be read or has more pixels is a `Failure`.

    Raises:
        BackendError: if the engine fails.
    """
    contract = explainer.contract
    image = decode_image(source.name, source.read, contract.input, max_pixels=max_pixels)
    if isinstance(image, Failure):
        return image
    output = explainer.infer(image.pixels[None])
    if not (np.isfinite(output.probabilities).all() and np.isfinite(output.maps).all()):
        return Failure(source.name, "infer", "the model's output is not a number")
    return Explanation(source.name, image.width, image.height, image.pixels, tuple(_label_maps(contract, output)))


def _label_maps(contract: ModelContract, output: MapOutput) -> Iterator[LabelMap]:
    probabilities = output.probabilities[0].tolist()
    for label, heat in zip(output.labels[0].tolist(), output.maps[0], strict=True):
        value = probabilities[label]
        yield LabelMap(contract.labels[label], value, value >= contract.thresholds[label], heat)
