"""Graphs with QuantizeLinear/DequantizeLinear pairs: which layers are quantised, how far each is off, and undoing it.

A quantiser marks every tensor that it rounds, weights included, by a pair of nodes; the float weights are still there.
In this form a layer is taken back to float32 by leading its inputs past the pairs, so that a search for the layers to
take back needs one calibration. `packed` is the form that is written: the weights rounded and stored in 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from mineral_batch.types import Pixels

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def is_quantised(model: ModelProto) -> bool:
    """Whether a tensor of the graph is rounded."""
    return any(node.op_type in (QUANTISE, DEQUANTISE) for node in model.graph.node)


def quantised_layers(model: ModelProto) -> tuple[str, ...]:
    """Names of the convolutions and matrix products both of whose factors are rounded, in the order of the graph."""
    made_by = _makers(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS
        and all(name in made_by and made_by[name].op_type == DEQUANTISE for name in node.input[:2])
    )


def _makers(model: ModelProto) -> dict[str, NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def _weights(model: ModelProto) -> dict[str, TensorProto]:
    return {weight.name: weight for weight in model.graph.initializer}


def left_in_float32(model: ModelProto, source: ModelProto, layers: Collection[str]) -> ModelProto:
    """The model with these layers as they were: inputs not rounded, biases without the quantiser's correction.

    Args:
        model: with float weights behind its pairs; left as it is.
        source: what it was made from, its nodes under the same names.
        layers: names.
    """
    result = ModelProto()
    result.CopyFrom(model)
    made_by, weights = _makers(result), _weights(result)
    originals, theirs = _weights(source), {node.name: node for node in source.graph.node}
    for node, index in _biases(result, layers):
        before = theirs[node.name].input[index] if node.name in theirs else ""
        if before in originals:
            values = numpy_helper.to_array(originals[before])
            weights[node.input[index]].CopyFrom(numpy_helper.from_array(values, node.input[index]))
    for node in result.graph.node:
        if node.name in layers:
            for index, name in enumerate(node.input):
                node.input[index] = _unrounded(name, made_by)
    return swept(result)


def _biases(model: ModelProto, layers: Collection[str]) -> Iterator[tuple[NodeProto, int]]:
    """Node and index of each constant that is added to one of the layers: its own, or that of the next `Add`."""
    weights = _weights(model)
    outputs = {node.output[0] for node in model.graph.node if node.name in layers}
    for node in model.graph.node:
        if node.name in layers and len(node.input) > 2 and node.input[2] in weights:
            yield node, 2
        if node.op_type == "Add" and outputs.intersection(node.input):
            yield from ((node, index) for index, name in enumerate(node.input) if name in weights)


def _unrounded(name: str, made_by: dict[str, NodeProto]) -> str:
    """What goes into the pair that this tensor comes out of; the tensor itself if it comes from elsewhere."""
    dequantise = made_by.get(name)
    if dequantise is None or dequantise.op_type != DEQUANTISE:
        return name
    quantise = made_by.get(dequantise.input[0])
    return name if quantise is None or quantise.op_type != QUANTISE else str(quantise.input[0])


def swept(model: ModelProto) -> ModelProto:
    """The model itself, without the nodes, weights and type notes that nothing uses any more."""
    graph = model.graph
    used, nodes = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            nodes.append(node)
    weights = [weight for weight in graph.initializer if weight.name in used]
    del graph.node[:], graph.initializer[:], graph.value_info[:]  # types are inferred anew
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(weights)
    return model


def with_half_scales(model: ModelProto) -> ModelProto:
    """The model with every scale rounded up to a number that FP16 has: none becomes 0, no weight leaves its range.

    Args:
        model: with float weights behind its pairs, which `packed` then rounds by these scales; left as it is.

    Raises:
        DataError: if a scale is beyond FP16's range, or is no constant.
    """
    result = ModelProto()
    result.CopyFrom(model)
    weights = _weights(result)
    for name in {node.input[1] for node in result.graph.node if node.op_type in (QUANTISE, DEQUANTISE)}:
        exact = numpy_helper.to_array(weights[name]) if name in weights else np.array(np.inf, np.float32)
        if not (exact < np.finfo(np.float16).max).all():
            raise DataError(f"the scale {name} has no form in FP16, in which the rest of the graph is to be")
        half = exact.astype(np.float16)
        half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
        weights[name].CopyFrom(numpy_helper.from_array(half.astype(exact.dtype), name))
    return result


def packed(model: ModelProto) -> ModelProto:
    """The model with its rounded weights stored as such: `QuantizeLinear` of a constant becomes a constant of 8 bits.

    Args:
        model: left as it is.
    """
    result = ModelProto()
    result.CopyFrom(model)
    weights = _weights(result)
    constant = [node for node in result.graph.node if node.op_type == QUANTISE and node.input[0] in weights]
    opset = next(entry for entry in result.opset_import if not entry.domain)
    for node in constant:
        inputs = {name: _exactly(numpy_helper.to_array(weights[name])) for name in node.input}
        (values,) = ReferenceEvaluator(_alone(node, inputs, opset.version)).run(None, inputs)
        result.graph.initializer.append(numpy_helper.from_array(np.asarray(values), node.output[0]))
        result.graph.node.remove(node)
    return swept(result)


def _exactly(values: np.ndarray) -> np.ndarray:
    """Divided in float32: in FP16 one weight in a hundred would land beside the nearest step."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _alone(node: NodeProto, inputs: dict[str, np.ndarray], opset: int) -> ModelProto:
    """A graph of this node only."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(values.dtype) for name, values in inputs.items()}
    given = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    result = helper.make_tensor_value_info(node.output[0], kinds[node.input[2]], None)
    graph = helper.make_graph([node], "alone", given, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


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
        self._weights = _weights(attempt)
        self._made_by = _makers(attempt)
        self._brought: dict[str, str] = {}
        theirs = {node.name: node for node in attempt.graph.node}
        quantised = set(quantised_layers(attempt))
        for node in model.graph.node:
            if node.name in quantised:
                self._add(node, theirs[node.name])

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
