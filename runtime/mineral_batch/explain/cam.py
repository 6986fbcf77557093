"""Grad-CAM without a gradient, for graphs that end with the mean over places and one linear layer.

With the last feature maps A_c of T places each, such a graph's logits and their gradients are

    logit_k = sum_c W_kc mean_t A_ct + b_k,        d logit_k / d A_ct = W_kc / T,

the same in all places of all pictures. Grad-CAM (Selvaraju et al. 2017, equations 1 and 2), divided by its largest
value, is then ReLU(sum_c W_kc A_c), divided by its largest value: the class activation map of Zhou et al. 2016. All
that it takes are the maps and the weights, which are values in the graph already.
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

#: What `mineral-export onnx` writes behind the feature maps of a model that pools, from the end: each takes the answer
#: of the next as its first input.
_OPERATORS = ("Sigmoid", "Gemm", "ReduceMean", "Transpose", "Reshape")


class Tail(NamedTuple):
    """The names in a graph of what its answer is made from.

    Attributes:
        features: (N, C, rows, columns).
        weights: (L, C).
        bias: (L,).
    """

    features: str
    weights: str
    bias: str


def find_tail(path: Path) -> Tail | None:
    """Where a graph ends as described above; None where it ends otherwise.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX.
    """
    nodes, outputs = read_graph(path)
    made_by = {name: node for node in nodes for name in node.outputs}
    name = outputs[0] if outputs else ""
    chain: list[Node] = []
    for operator in _OPERATORS:
        node = made_by.get(name)
        if node is None or node.operator != operator or not node.inputs:
            return None
        chain.append(node)
        name = node.inputs[0]
    linear = chain[1].inputs
    return Tail(name, linear[1], linear[2]) if len(linear) == 3 else None


def logits_of(features: Floats, weights: Floats, bias: Floats) -> Floats:
    """(N, C, rows, columns), (L, C) and (L,) to (N, L), by the formula above."""
    logits: Floats = features.mean(axis=(2, 3)) @ weights.T + bias
    return logits


def activation_maps(features: Floats, weights: Floats) -> Floats:
    """(N, C, rows, columns) and (L, C) to a map for every label (N, L, rows, columns), as `explain.Answer` has them."""
    pictures, channels, *grid = features.shape
    maps = np.maximum(weights @ features.reshape(pictures, channels, -1), 0)  # (N, L, T)
    largest = maps.max(axis=2, keepdims=True)
    normal: Floats = maps / np.maximum(largest, np.finfo(np.float32).tiny)
    return normal.reshape(pictures, len(weights), *grid)
