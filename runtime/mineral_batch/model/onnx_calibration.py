"""Put a calibration into an ONNX file's graph: sigmoid(z_k) becomes sigmoid(scale_k z_k + bias_k).

Neither `onnx` nor `protobuf` is needed. Where the logits come from a linear layer of its own float32 weights (`Gemm`),
its rows are scaled, and the graph keeps its form. Elsewhere `Mul` and `Add` stand behind the logits, in front of
everything that used them, so that the choice of a graph's maps follows the calibrated values; a second calibration
changes their constants.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.model.onnx_graph import (
    NODE_OUTPUT,
    Graph,
    Node,
    node_message,
    rewrite,
    tensor_message,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_SCALE, _BIAS = "calibration/scale", "calibration/bias"
_PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def calibrate_graph(source: str | Path, target: str | Path, scale: Sequence[float], bias: Sequence[float]) -> None:
    """Write `source` with its logits scaled and shifted; everything else stays as it is, byte for byte.

    Args:
        source: an ONNX file whose first output is a `Sigmoid` over L logits in float32.
        target: where to write; may be `source`. It appears whole or not at all.
        scale: (L,), above 0.
        bias: (L,).

    Raises:
        ContractError: if the file is not ONNX, or does not end that way.
        DataError: if the target cannot be written.
    """
    scales, biases = np.array(scale, np.float32), np.array(bias, np.float32)
    rewrite(source, target, lambda graph: _calibrated(graph, source, scales, biases))


def _calibrated(graph: Graph, source: str | Path, scale: Floats, bias: Floats) -> bytes:
    """The graph's message with the map in it."""
    last, logits = graph.end(source)
    if _SCALE in graph.initializers:
        old_scale, old_bias = (graph.values(graph.initializers[name]) for name in (_SCALE, _BIAS))
        return graph.with_tensors({_SCALE: scale * old_scale, _BIAS: scale * old_bias + bias})
    if _is_linear(graph, logits):
        _, weights, offset = logits.inputs
        old = graph.values(graph.initializers[weights]).reshape(len(scale), -1)
        shifted = scale * graph.values(graph.initializers[offset]) + bias
        return graph.with_tensors({weights: scale[:, None] * old, offset: shifted})
    return _with_map_behind(graph, logits, last.inputs[0], scale, bias)


def _is_linear(graph: Graph, node: Node) -> bool:
    """Whether a node is x W^T + b with float32 constants that nothing else uses."""
    if node.operator != "Gemm" or len(node.inputs) != 3 or _GEMM_DEFAULTS | node.attributes != _PLAIN_GEMM:
        return False
    used = [name for other in graph.nodes for name in other.inputs]
    return all(
        used.count(name) == 1 and name in graph.initializers and graph.is_raw_float32(graph.initializers[name])
        for name in node.inputs[1:]
    )


def _with_map_behind(graph: Graph, node: Node, logits: str, scale: Floats, bias: Floats) -> bytes:
    """The message with `Mul` and `Add` behind a node; their result takes the name of its output."""
    raw, scaled = f"{logits}/uncalibrated", f"{logits}/scaled"
    behind = node_message("Mul", (raw, _SCALE), scaled) + node_message("Add", (scaled, _BIAS), logits)
    constants = tensor_message(_SCALE, scale) + tensor_message(_BIAS, bias)
    return graph.with_node(node, {(NODE_OUTPUT, logits): raw}, behind) + constants
