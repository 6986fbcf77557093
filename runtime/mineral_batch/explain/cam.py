"""Grad-CAM without a gradient, for graphs that end with the mean over places and one linear layer.

With the last feature maps A_c of T places each, such a graph's logits and their gradients are

    logit_k = sum_c W_kc mean_t A_ct + b_k,        d logit_k / d A_ct = W_kc / T,

the same in all places of all images. Grad-CAM (Selvaraju et al. 2017, equations 1 and 2), divided by its largest value,
is then ReLU(sum_c W_kc A_c), divided by its largest value: the class activation map of Zhou et al. 2016. It needs only
the feature maps and the weights, which are values in the graph already.

Where the graph ends so is read from the graph, not from metadata written at export: conversions (FP16, INT8, folding a
calibration into the last layer) rename and replace nodes but copy metadata, so metadata would go stale unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mineral_batch.model.onnx_file import read_graph

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.model.onnx_file import Node

Floats = NDArray[np.float32]

#: What may stand between the logits and the output: one value per label to one value, as a calibration does.
_PER_LABEL = frozenset({"Sigmoid", "Mul", "Add", "Sub", "Div"})
#: What `mineral-export onnx` writes behind the feature maps of a model that pools, from the end: the output of each is
#: the first input of the one before it in this list.
_POOLED_HEAD = ("Gemm", "ReduceMean", "Transpose", "Reshape")


class PooledHead(NamedTuple):
    """Names in the graph of the parts of a pooled head.

    Attributes:
        features: (N, C, rows, columns).
        weights: (L, C).
        bias: (L,).
        logits: (N, L).
    """

    features: str
    weights: str
    bias: str
    logits: str


def find_pooled_head(path: Path) -> PooledHead | None:
    """Find the head described above; None if the graph ends otherwise.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX.
    """
    nodes, outputs = read_graph(path)
    producer = {name: node for node in nodes for name in node.outputs}
    logits = _behind_calibration(producer, outputs[0] if outputs else "")
    name = logits
    chain: list[Node] = []
    for operator in _POOLED_HEAD:
        node = producer.get(name)
        if node is None or node.operator != operator or not node.inputs:
            return None
        chain.append(node)
        name = node.inputs[0]
    linear = chain[0].inputs
    return PooledHead(name, linear[1], linear[2], logits) if len(linear) == 3 else None


def _behind_calibration(producer: dict[str, Node], name: str) -> str:
    """Walk back from the output over the operations that change each label's value alone."""
    while (node := producer.get(name)) is not None and node.operator in _PER_LABEL:
        # An operand without inputs of its own is a constant.
        computed = [operand for operand in node.inputs if operand in producer and producer[operand].inputs]
        if len(computed) != 1:
            break
        (name,) = computed
    return name


def pooled_logits(features: Floats, weights: Floats, bias: Floats) -> Floats:
    """Apply the formula above: (N, C, rows, columns), (L, C) and (L,) to (N, L)."""
    logits: Floats = features.mean(axis=(2, 3)) @ weights.T + bias
    return logits


def activation_maps(features: Floats, weights: Floats) -> Floats:
    """Compute a map for every label: (N, C, rows, columns) and (L, C) to (N, L, rows, columns), 0..1."""
    images, channels, *grid = features.shape
    maps = np.maximum(weights @ features.reshape(images, channels, -1), 0)  # (N, L, T)
    largest = maps.max(axis=2, keepdims=True)
    normal: Floats = maps / np.maximum(largest, np.finfo(np.float32).tiny)
    return normal.reshape(images, len(weights), *grid)
