"""INT8 by post-training static quantisation: explicit Q/DQ in the ONNX graph, sensitive layers left in float32.

NNCF calibrates on real pictures (Nagel et al. 2019, arXiv:1906.04721, for the bias correction; SmoothQuant, Xiao et
al. 2022, for transformers). ONNX Runtime's own static quantisation lost 13 points on a ViT where NNCF lost 0.6. One
graph format serves three engines; what they differ in is which zero points and signs they take.
"""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mineral_batch._onnx_file import read_contract
from mineral_batch.errors import BackendError, DataError
from mineral_export import verify
from mineral_export.gate import Exported, derive
from mineral_export.verify import ParityError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from mineral_batch.images import Pixels
    from mineral_export.verify import Budget, Samples

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})

#: Shares of the layers that are left in float32, tried in this order until the answers are within the budget.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)

# Pictures on which a layer's own error is measured: an average over all places and channels needs few.
_MEASURED = 4


@dataclass(frozen=True)
class Target:
    """What an engine takes.

    Attributes:
        symmetric: signed, with zero points of 0, as TensorRT wants; else each tensor as its values suggest.
        engine: that verifies the file.
    """

    symmetric: bool
    engine: str


TARGETS: dict[str, Target] = {
    "onnxruntime": Target(symmetric=False, engine="onnx-cpu"),
    "openvino": Target(symmetric=False, engine="openvino:float32"),
    "tensorrt": Target(symmetric=True, engine="onnx-cpu"),
}


@dataclass(frozen=True)
class Quantised:
    """A written INT8 file.

    Attributes:
        exported: where it is, and its parity.
        layers: how many matrix layers the graph has.
        kept: names of those left in float32, the most sensitive first.
    """

    exported: Exported
    layers: int
    kept: tuple[str, ...]


def to_int8(
    source: Path,
    target: Path,
    calibration: Pixels,
    *,
    for_engine: str = "onnxruntime",
    pictures: Callable[[], Samples] | None = None,
    budget: Budget | None = None,
    force: bool = False,
) -> Quantised:
    """Write an ONNX file with INT8 layers, with as many in float32 as the budget needs.

    Layers are ranked by their own error (`layer_errors`); the worst share of `SHARES` is left in float32, and the
    rest quantised anew, until the file's answers are within the budget.

    Args:
        source: float32, written by `export_onnx`.
        target: where to write.
        calibration: (N, H, W, 3) uint8 real pictures; a few hundred.
        for_engine: a name in `TARGETS`.
        pictures: makes what is compared on, anew for each attempt; None for synthetic ones.
        budget: None for `BUDGETS["int8"]`.
        force: write the first attempt whatever it loses.

    Raises:
        ParityError: if even the last attempt is beyond the budget; nothing is written.
        BackendError: if nncf, or the engine that verifies, is not installed.
        ContractError: if the source is no model with a contract.
        DataError: if the source is quantised already, or the target cannot be written.
    """
    model = onnx.load(source)
    layers = [node.name for node in model.graph.node if node.op_type in LAYERS]
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise DataError(f"{source} is quantised already: give the float32 file that it was made from")
    wanted, contract = TARGETS[for_engine], read_contract(source)
    ranked: list[str] = []
    for share in SHARES:
        kept = tuple(ranked[: round(share * len(layers))])
        attempt = quantised(model, calibration, keep=kept, symmetric=wanted.symmetric)
        try:
            exported = derive(
                source,
                target,
                "int8",
                partial(_save, attempt),
                pictures=pictures() if pictures else verify.samples(contract),
                budget=budget,
                engine=wanted.engine,
                force=force,
                quantised_for=for_engine,
                calibration_pictures=len(calibration),
                float32_layers=list(kept),
            )
        except ParityError:
            if share == SHARES[-1]:
                raise
            ranked = ranked or _worst_first(layer_errors(model, attempt, calibration[:_MEASURED]))
        else:
            return Quantised(exported, len(layers), kept)
    raise AssertionError("the last attempt returns or raises")


def _save(model: ModelProto, _: Path, target: Path) -> None:
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _worst_first(errors: Mapping[str, float]) -> list[str]:
    return sorted(errors, key=lambda name: -errors[name])


def quantised(
    model: ModelProto, calibration: Pixels, *, keep: Collection[str] = (), symmetric: bool = False
) -> ModelProto:
    """The model with Q/DQ pairs: weights per output channel, activations per tensor, biases in float32.

    Args:
        model: float32; left as it is.
        calibration: (N, H, W, 3) uint8.
        keep: names of layers that stay float32.
        symmetric: see `Target`.

    Raises:
        BackendError: if nncf is not installed.
    """
    nncf = _nncf()
    name = model.graph.input[0].name
    is_transformer = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    copy = ModelProto()
    copy.CopyFrom(model)
    with redirect_stdout(io.StringIO()):  # its progress bars
        result: ModelProto = nncf.quantize(
            copy,
            nncf.Dataset([{name: picture[None]} for picture in calibration]),
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            subset_size=len(calibration),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            ignored_scope=nncf.IgnoredScope(names=list(keep)) if keep else None,
            advanced_parameters=_parameters(),
        )
    if symmetric:
        _signed(result)
    return result


def _nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise BackendError(
            f'INT8 needs nncf, which does not load ({error}): pip install "mineral-batch[int8]"'
        ) from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _parameters() -> Any:
    """Activations per tensor: no engine fuses what is scaled per channel."""
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    return AdvancedQuantizationParameters(
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )


def _signed(model: ModelProto) -> None:
    """Make unsigned tensors (what follows a ReLU) signed, as TensorRT wants: the same range on 127 steps, not 255.

    NNCF has no option for that: forcing the sign is refused as incompatible with every engine it knows.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = {node.input[2] for node in nodes if len(node.input) > 2}
    unsigned = {name for name in zeros if weights[name].data_type == TensorProto.UINT8}
    scales = {node.input[1] for node in nodes if len(node.input) > 2 and node.input[2] in unsigned}
    for name in zeros:
        values = numpy_helper.to_array(weights[name])
        if values.any():
            raise BackendError(f"nncf chose a zero point other than 0 ({name}), which TensorRT refuses")
        weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.int8), name))
    del model.graph.value_info[:]  # they name the old types; all are inferred anew
    for name in scales:
        values = numpy_helper.to_array(weights[name]) * np.float32(255 / 127)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))


def layer_errors(model: ModelProto, attempt: ModelProto, pixels: Pixels) -> dict[str, float]:
    """Each quantised layer's own error: root of |quantised - float|^2 / |float|^2 of its output, given float inputs.

    Inputs come from the float32 model, so that a layer does not answer for those before it. One graph computes all:
    beside each float layer stands its quantised twin.

    Args:
        model: float32.
        attempt: the same model with Q/DQ pairs, its nodes under their old names.
        pixels: (N, H, W, 3) uint8.
    """
    import onnxruntime

    twins = _Twins(model, attempt)
    session = onnxruntime.InferenceSession(twins.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    name = model.graph.input[0].name
    sums = np.zeros((len(twins.layers), 2))
    for picture in pixels:
        sums += np.reshape(session.run(twins.outputs, {name: picture[None]}), (-1, 2))
    errors = np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], np.finfo(np.float32).tiny))
    return dict(zip(twins.layers, errors.tolist(), strict=True))


class _Twins:
    """The float32 graph with a quantised twin beside each layer.

    Attributes:
        graph: the model; its further outputs are `outputs`.
        layers: names of the layers that have a twin.
        outputs: for each layer two: the mean square of its twin's error, and of its output.
    """

    def __init__(self, model: ModelProto, attempt: ModelProto) -> None:
        self.graph = ModelProto()
        self.graph.CopyFrom(model)
        self.layers: list[str] = []
        self.outputs: list[str] = []
        self._floats = {name for node in model.graph.node for name in node.output}
        self._floats.update(value.name for value in model.graph.input)
        self._weights = {weight.name: weight for weight in attempt.graph.initializer}
        self._made_by = {name: node for node in attempt.graph.node for name in node.output}
        self._brought: dict[str, str] = {}
        theirs = {node.name: node for node in attempt.graph.node}
        for node in model.graph.node:
            if node.op_type in LAYERS and self._is_quantised(theirs.get(node.name)):
                self._add(node, theirs[node.name])

    def _is_quantised(self, node: NodeProto | None) -> bool:
        """Its inputs come out of a `DequantizeLinear`."""
        if node is None:
            return False
        makers = [self._made_by[name].op_type for name in node.input[:2] if name in self._made_by]
        return "DequantizeLinear" in makers

    def _add(self, node: NodeProto, twin: NodeProto) -> None:
        output = self._copy(twin, [self._bring(name) for name in twin.input])
        self.layers.append(node.name)
        for nodes in _mean_squares(node.output[0], output):
            self.graph.graph.node.extend(nodes)
            result = nodes[-1].output[0]
            self.graph.graph.output.append(helper.make_tensor_value_info(result, TensorProto.FLOAT, []))
            self.outputs.append(result)

    def _bring(self, name: str) -> str:
        """The tensor of the quantised graph, computed here from the float graph's tensors."""
        if not name or name in self._brought:
            return self._brought.get(name, "")
        if name in self._weights:
            weight = TensorProto()
            weight.CopyFrom(self._weights[name])
            weight.name = self._brought[name] = f"twin:{name}"
            self.graph.graph.initializer.append(weight)
        elif name in self._floats:
            self._brought[name] = name
        else:
            maker = self._made_by[name]
            self._brought[name] = self._copy(maker, [self._bring(source) for source in maker.input])
        return self._brought[name]

    def _copy(self, node: NodeProto, inputs: list[str]) -> str:
        """Add a node under another name; returns its output's."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"twin:{node.output[0]}"
        del copy.input[:], copy.output[:]
        copy.input.extend(inputs)
        copy.output.append(f"twin:{node.output[0]}")
        self.graph.graph.node.append(copy)
        name: str = copy.output[0]
        return name


def _mean_squares(output: str, twin: str) -> Iterator[list[NodeProto]]:
    """Nodes for mean (twin - output)^2, then for mean output^2."""
    error = f"error:{output}"
    yield [
        helper.make_node("Sub", [twin, output], [error]),
        helper.make_node("Mul", [error, error], [f"{error}:squared"]),
        helper.make_node("ReduceMean", [f"{error}:squared"], [f"{error}:mean"], keepdims=0),
    ]
    yield [
        helper.make_node("Mul", [output, output], [f"power:{output}"]),
        helper.make_node("ReduceMean", [f"power:{output}"], [f"power:{output}:mean"], keepdims=0),
    ]
