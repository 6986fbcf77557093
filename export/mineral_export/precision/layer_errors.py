"""How far each quantized layer is off by itself: the measure by which layers are taken back to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from mineral_export.precision.qdq import producers, quantized_layers, weights_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.types import Pixels


def layer_errors(model: ModelProto, attempt: ModelProto, pixels: Pixels) -> dict[str, float]:
    """Measure each quantized layer's own error: root of |quantized - float|^2 / |float|^2 of its output.

    Its inputs come from the float32 model, so that the layers before it do not count. One graph computes all of it:
    each float layer has a quantized twin.

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
    for image in pixels:
        sums += np.reshape(session.run(twins.outputs, {name: image[None]}), (-1, 2))
    errors = np.sqrt(sums[:, 0] / np.maximum(sums[:, 1], np.finfo(np.float32).tiny))
    return dict(zip(twins.layers, errors.tolist(), strict=True))


class _Twins:
    """The float32 graph with a quantized twin of each layer.

    Attributes:
        graph: the model with the further outputs `outputs`.
        layers: names of the layers that have a twin.
        outputs: two for each layer: the mean square of its twin's error, and of its output.
    """

    def __init__(self, model: ModelProto, attempt: ModelProto) -> None:
        self.graph = ModelProto()
        self.graph.CopyFrom(model)
        self.layers: list[str] = []
        self.outputs: list[str] = []
        self._floats = {name for node in model.graph.node for name in node.output}
        self._floats.update(value.name for value in model.graph.input)
        self._weights = weights_of(attempt)
        self._made_by = producers(attempt)
        self._brought: dict[str, str] = {}
        theirs = {node.name: node for node in attempt.graph.node}
        quantized = set(quantized_layers(attempt))
        for node in model.graph.node:
            if node.name in quantized:
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
        """Return the quantized graph's tensor, computed here from the float graph's tensors."""
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
        """Add a copy of a node; returns the name of its output."""
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
    """Yield the nodes for mean (twin - output)^2, then those for mean output^2."""
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
