"""Graphs with QuantizeLinear/DequantizeLinear pairs: which layers are quantized, and undoing it for some.

A quantizer marks every tensor that it rounds, weights included, with a pair of nodes; the float weights stay.
In this form a layer is taken back to float32 by connecting its inputs around the pairs, so a search for the layers to
take back needs one calibration. `packed` is the form that is written: weights rounded and stored in 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

LAYERS = frozenset({"Conv", "MatMul", "Gemm"})
QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def is_quantized(model: ModelProto) -> bool:
    """Whether the graph has a rounded tensor."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node)


def quantized_layers(model: ModelProto) -> tuple[str, ...]:
    """Return the names of the convolutions and matrix products with both factors rounded, in the graph's order."""
    made_by = producers(model)
    return tuple(
        node.name
        for node in model.graph.node
        if node.op_type in LAYERS
        and all(name in made_by and made_by[name].op_type == DEQUANTIZE for name in node.input[:2])
    )


def layer_count(model: ModelProto) -> int:
    """Return the number of convolutions and matrix products that can be quantized."""
    beside = {node.output[0] for node in side_nodes(model)}
    return sum(node.op_type in LAYERS and node.output[0] not in beside for node in model.graph.node)


def producers(model: ModelProto) -> dict[str, NodeProto]:
    """Return the node that computes each tensor."""
    return {name: node for node in model.graph.node for name in node.output}


def side_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the nodes that the first output does not need: those of the familiarity.

    No conversion changes them. They take differences, squares and a logarithm of the pooled features, and cost nothing
    beside the rest of the graph.
    """
    made_by = producers(model)
    needed, waiting = set(), [model.graph.output[0].name]
    while waiting:
        name = waiting.pop()
        if name in made_by and name not in needed:
            needed.update(made_by[name].output)
            waiting.extend(made_by[name].input)
    return [node for node in model.graph.node if not needed.intersection(node.output)]


def weights_of(model: ModelProto) -> dict[str, TensorProto]:
    """Return the initializers by name."""
    return {weight.name: weight for weight in model.graph.initializer}


def left_in_float32(model: ModelProto, source: ModelProto, layers: Collection[str]) -> ModelProto:
    """Return the model with these layers as they were: inputs not rounded, biases without the quantizer's correction.

    Args:
        model: with float weights behind its pairs; left as it is.
        source: the float32 model, its nodes under the same names.
        layers: their names.
    """
    result = ModelProto()
    result.CopyFrom(model)
    made_by, weights = producers(result), weights_of(result)
    originals, theirs = weights_of(source), {node.name: node for node in source.graph.node}
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
    """Yield node and input index of each constant that is added to one of the layers: its own, or the next `Add`'s."""
    weights = weights_of(model)
    outputs = {node.output[0] for node in model.graph.node if node.name in layers}
    for node in model.graph.node:
        if node.name in layers and len(node.input) > 2 and node.input[2] in weights:
            yield node, 2
        if node.op_type == "Add" and outputs.intersection(node.input):
            yield from ((node, index) for index, name in enumerate(node.input) if name in weights)


def _unrounded(name: str, made_by: dict[str, NodeProto]) -> str:
    """Return the input of the pair whose output this tensor is; the tensor itself if it comes from elsewhere."""
    dequantize = made_by.get(name)
    if dequantize is None or dequantize.op_type != DEQUANTIZE:
        return name
    quantize = made_by.get(dequantize.input[0])
    return name if quantize is None or quantize.op_type != QUANTIZE else str(quantize.input[0])


def swept(model: ModelProto) -> ModelProto:
    """Remove the nodes, weights and types that nothing uses any more; returns the model itself."""
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
    """Return the model with every scale rounded up to an FP16 number: none becomes 0, no weight leaves its range.

    Args:
        model: with float weights behind its pairs, which `packed` then rounds by these scales; left as it is.

    Raises:
        DataError: if a scale is beyond FP16's range, or not a constant.
    """
    result = ModelProto()
    result.CopyFrom(model)
    weights = weights_of(result)
    for name in {node.input[1] for node in result.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)}:
        exact = numpy_helper.to_array(weights[name]) if name in weights else np.array(np.inf, np.float32)
        if not (exact < np.finfo(np.float16).max).all():
            raise DataError(f"the scale {name} is beyond the range of FP16, which the rest of the graph uses")
        half = exact.astype(np.float16)
        half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
        weights[name].CopyFrom(numpy_helper.from_array(half.astype(exact.dtype), name))
    return result


def packed(model: ModelProto) -> ModelProto:
    """Return the model with its rounded weights stored in 8 bits: `QuantizeLinear` of a constant becomes a constant.

    Args:
        model: left as it is.
    """
    result = ModelProto()
    result.CopyFrom(model)
    weights = weights_of(result)
    constant = [node for node in result.graph.node if node.op_type == QUANTIZE and node.input[0] in weights]
    opset = next(entry for entry in result.opset_import if not entry.domain)
    for node in constant:
        inputs = {name: _exactly(numpy_helper.to_array(weights[name])) for name in node.input}
        (values,) = ReferenceEvaluator(_alone(node, inputs, opset.version)).run(None, inputs)
        result.graph.initializer.append(numpy_helper.from_array(np.asarray(values), node.output[0]))
        result.graph.node.remove(node)
    return swept(result)


def _exactly(values: np.ndarray) -> np.ndarray:
    """Divide in float32: in FP16 one weight in a hundred would be rounded to a neighboring step."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _alone(node: NodeProto, inputs: dict[str, np.ndarray], opset: int) -> ModelProto:
    """Return a graph of this node only."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(values.dtype) for name, values in inputs.items()}
    entries = [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
    result = helper.make_tensor_value_info(node.output[0], kinds[node.input[2]], None)
    graph = helper.make_graph([node], "alone", entries, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
