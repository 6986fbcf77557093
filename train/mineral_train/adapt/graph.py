"""The last linear layer of an exported model: found, its input read, itself replaced.

`mineral-export onnx` ends a model that pools with ReduceMean -> Gemm -> Sigmoid; a calibration may stand between the
last two (`Mul`, `Add`). The input of the `Gemm` are the features, (N, C).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import DataError
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import CONTRACT_KEY, read_contract

if TYPE_CHECKING:
    import onnxruntime

Floats = NDArray[np.float32]

_PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
_MOST_FEATURES = 8192  # more are the flattened states of a decoder, which a few photographs cannot weigh
_THREADS_WAIT = "session.intra_op.allow_spinning"


@dataclass(frozen=True)
class LinearHead:
    """An ONNX model that ends with one linear layer.

    Attributes:
        path: of the file.
        contract: of the file.
        model: the parsed `onnx.ModelProto`.
        features: name of the layer's input in the graph.
        gemm: the layer's node.
        weights: (L, C), with a calibration that stands behind them folded in.
        bias: (L,), likewise.
    """

    path: Path
    contract: ModelContract
    model: Any
    features: str
    gemm: Any
    weights: Floats
    bias: Floats

    @classmethod
    def read(cls, path: Path) -> LinearHead:
        """Read a model and find its last layer.

        Raises:
            ContractError: if the file is missing, not ONNX or has no contract.
            DataError: if it does not end with a linear layer in float32.
        """
        import onnx

        contract = read_contract(path)
        model = onnx.load(str(path))
        constants = {tensor.name: tensor for tensor in model.graph.initializer}
        gemm, scale, bias = _find_gemm(path, model, constants)
        values = [onnx.numpy_helper.to_array(constants[name]) for name in gemm.input[1:]]
        weights, offset = scale[:, None] * values[0], scale * values[1] + bias
        if weights.shape[1] > _MOST_FEATURES:
            raise _unsuitable(path, f"its last layer reads {weights.shape[1]} numbers")
        return cls(path, contract, model, gemm.input[0], gemm, weights.astype(np.float32), offset.astype(np.float32))

    def feature_session(self) -> onnxruntime.InferenceSession:
        """Open the model on the CPU with the features as its only output."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info(self.features, onnx.TensorProto.FLOAT, None))
        return _session(model.SerializeToString())

    def with_head(self, weights: Floats, bias: Floats, contract: ModelContract) -> bytes:
        """Return the file with another last layer and contract: probabilities = sigmoid(weights features + bias).

        Args:
            weights: (K, C).
            bias: (K,).
            contract: of K labels.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        for name, value in zip(self.gemm.input[1:], (weights, bias), strict=True):
            tensor = next(t for t in graph.initializer if t.name == name)
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), name))
        output = graph.output[0]
        sigmoid = next(node for node in graph.node if output.name in node.output)
        between = _between(graph, self.gemm.output[0], sigmoid)
        sigmoid.input[0] = self.gemm.output[0]
        for node in between:
            graph.node.remove(node)
        output.type.tensor_type.shape.dim[1].dim_value = len(bias)
        del graph.value_info[:]  # shapes of values that have other shapes now; every engine infers them
        _drop_unused_constants(graph)
        kept = {entry.key: entry.value for entry in model.metadata_props} | {CONTRACT_KEY: contract.to_json()}
        onnx.helper.set_model_props(model, kept)
        return bytes(model.SerializeToString())


def answers(content: bytes, pixels: NDArray[np.uint8]) -> Floats:
    """Run an ONNX file's bytes on the CPU: (N, H, W, 3) uint8 to probabilities (N, L)."""
    session = _session(content)
    result: Floats = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: pixels})[0]
    return result


def _session(content: bytes) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(_THREADS_WAIT, "0")  # the decoding threads need the CPU between batches
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _find_gemm(
    path: Path, model: Any, constants: dict[str, Any]
) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Walk back from the probabilities; the layer, and the scale and shift of the logits behind it."""
    import onnx

    output = model.graph.output[0]
    producer = {name: node for node in model.graph.node for name in node.output}
    sigmoid = producer[output.name]
    if sigmoid.op_type != "Sigmoid":
        raise _unsuitable(path, "it does not end with a sigmoid")
    if _depends(producer, model.graph.output[1:], sigmoid):
        raise _unsuitable(path, "it also gives maps, which belong to its labels; export it without --explain")
    labels = int(output.type.tensor_type.shape.dim[1].dim_value)
    scale, bias = np.ones(labels), np.zeros(labels)
    node: Any = producer.get(sigmoid.input[0])
    while node is not None and node.op_type in ("Mul", "Add") and node.input[1] in constants:
        value = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        scale, bias = (scale * value, bias) if node.op_type == "Mul" else (scale, bias + scale * value)
        node = producer.get(node.input[0])
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} if node is not None else {}
    is_plain = node is not None and node.op_type == "Gemm" and _GEMM_DEFAULTS | attributes == _PLAIN_GEMM
    if not is_plain or len(node.input) != 3 or any(name not in constants for name in node.input[1:]):
        raise _unsuitable(path, "its labels do not come from one linear layer")
    if any(constants[name].data_type != onnx.TensorProto.FLOAT for name in node.input[1:]):
        raise _unsuitable(path, "its last layer is not float32")
    return node, scale, bias


def _unsuitable(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be adapted: {why}; adapt the starter or another exported float32 model with --method pool, or "
        "train with `mineral-train fit`"
    )


def _depends(producer: dict[str, Any], outputs: Any, node: Any) -> bool:
    """Whether one of these outputs is computed from what leads from the layer to the probabilities."""
    head = set(node.output) | set(node.input)
    pending, seen = [output.name for output in outputs], set()
    while pending:
        name = pending.pop()
        if name in head:
            return True
        if name in producer and name not in seen:
            seen.add(name)
            pending.extend(producer[name].input)
    return False


def _between(graph: Any, start: str, sigmoid: Any) -> list[Any]:
    """The nodes between the layer's output and the sigmoid."""
    producer = {name: node for node in graph.node for name in node.output}
    nodes, name = [], sigmoid.input[0]
    while name != start:
        nodes.append(producer[name])
        name = producer[name].input[0]
    return nodes


def _drop_unused_constants(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
