"""How familiar an image looks to a model: the score, and the operations that compute it in a graph.

Features f (D,), the pooled vector in front of the last linear layer, are standardized by the training images: u = (f -
mean) / sd. The strangeness is a Mahalanobis distance (Lee et al. 2018, arXiv 1807.03888, with one class) in the form of
probabilistic principal components (Tipping and Bishop 1999): K components keep their own variances, the rest share one,

    s(f) = log( sum_k w_k (v_k . u)^2 + |u|^2 / rest ),      w_k = 1 / variance_k - 1 / rest.

Familiarity is the share of training images that are stranger: 1 less the percentile of s, linear between 101 quantiles.
It says whether an image looks like the training images, a photograph of a mineral; whether it shows one of the labels
is what the probabilities say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mineral_batch.errors import ContractError
from mineral_batch.model.onnx_graph import Graph, node_message, output_message, rewrite, tensor_message

if TYPE_CHECKING:
    from pathlib import Path

Floats = NDArray[np.float64]

#: Name of the graph's output, (N, 1) float32, 0..1.
OUTPUT = "familiarity"
#: Below this an image looks like nothing that the model was trained on: stranger than 95% of its training images.
UNFAMILIAR = 0.05
QUANTILES = 101
_TINY = 1e-12
_FEATURES = "<features>"  # stands for the name that they have in a graph


@dataclass(frozen=True)
class FamiliarityScore:
    """The numbers of the score.

    Attributes:
        mean: (D,).
        inverse_sd: (D,), 0 for a channel that never varies.
        components: (K, D), rows of length 1.
        weights: (K,).
        inverse_rest: 1 / rest.
        quantiles: (101,) of the strangeness of training images, increasing.
    """

    mean: Floats
    inverse_sd: Floats
    components: Floats
    weights: Floats
    inverse_rest: float
    quantiles: Floats

    def strangeness(self, features: NDArray[np.floating]) -> Floats:
        """(N, D) to (N,)."""
        u = (np.asarray(features, np.float64) - self.mean) * self.inverse_sd
        distance = (u @ self.components.T) ** 2 @ self.weights + self.inverse_rest * (u**2).sum(axis=1)
        strangeness: Floats = np.log(np.maximum(distance, _TINY))
        return strangeness

    def __call__(self, features: NDArray[np.floating]) -> Floats:
        """(N, D) to familiarity (N,), 0..1."""
        q = self.quantiles
        parts = np.clip((self.strangeness(features)[:, None] - q[:-1]) / np.diff(q), 0.0, 1.0)
        familiarity: Floats = 1.0 - parts.mean(axis=1)
        return familiarity


def features_name(source: str | Path, graph: Graph) -> str:
    """The name of the pooled vector in a graph.

    Raises:
        ContractError: if the graph does not end with one linear layer over such a vector.
    """
    _, logits = graph.end(source)
    if logits.operator == "Gemm" and logits.inputs[0] in graph.producers:
        return logits.inputs[0]
    if logits.operator == "Add" and logits.inputs[0] == f"{logits.outputs[0]}/scaled":
        raise ContractError(f"{source} was calibrated by operations of its own: add familiarity before calibrating it")
    raise ContractError(
        f"{source} does not end with the mean over places and one linear layer: only such a model has a familiarity"
    )


def add_familiarity(source: str | Path, target: str | Path, score: FamiliarityScore) -> None:
    """Write `source` with the output `familiarity` (N, 1) behind those that it has, or another score in its place.

    Raises:
        ContractError: as `features_name`.
        DataError: if the target cannot be written.
    """

    def change(graph: Graph) -> bytes:
        numbers = _constants(score)
        if OUTPUT in graph.outputs:
            _require_same_sizes(source, graph, numbers)
            return graph.with_tensors({f"{OUTPUT}/{name}": values for name, values in numbers.items()})
        added = [tensor_message(f"{OUTPUT}/{name}", values) for name, values in numbers.items()]
        added += [
            node_message(operator, inputs, output) for operator, inputs, output in _nodes(features_name(source, graph))
        ]
        return graph.message + b"".join(added) + output_message(OUTPUT, ("N", 1))

    rewrite(source, target, change)


def _require_same_sizes(source: str | Path, graph: Graph, numbers: dict[str, NDArray[np.float32]]) -> None:
    for name, values in numbers.items():
        if graph.values(graph.initializers[f"{OUTPUT}/{name}"]).size != values.size:
            raise ContractError(f"{source} has a familiarity of other dimensions: begin with the file that had none")


def _constants(score: FamiliarityScore) -> dict[str, NDArray[np.float32]]:
    channels, steps = len(score.mean), np.diff(score.quantiles)
    numbers = {
        "mean": score.mean,
        "inverse_sd": score.inverse_sd,
        "components": score.components.T,
        "weights": score.weights[:, None],
        "rest": np.full((channels, 1), score.inverse_rest),
        "tiny": np.array([_TINY]),
        "from": score.quantiles[:-1],
        "per_step": 1 / steps,
        "zero": np.array(0.0),
        "one": np.array(1.0),
        "mean_of_steps": np.full((len(steps), 1), 1 / len(steps)),
    }
    return {name: np.asarray(values, np.float32) for name, values in numbers.items()}


def _nodes(features: str) -> list[tuple[str, tuple[str, ...], str]]:
    """(operator, inputs, output); every sum is a matrix product, whose form no opset changes."""
    steps = [
        ("Sub", (_FEATURES, "mean"), "centered"),
        ("Mul", ("centered", "inverse_sd"), "u"),
        ("MatMul", ("u", "components"), "projected"),
        ("Mul", ("projected", "projected"), "projected_squared"),
        ("MatMul", ("projected_squared", "weights"), "within"),
        ("Mul", ("u", "u"), "u_squared"),
        ("MatMul", ("u_squared", "rest"), "whole"),
        ("Add", ("within", "whole"), "distance"),
        ("Max", ("distance", "tiny"), "positive"),
        ("Log", ("positive",), "strangeness"),
        ("Sub", ("strangeness", "from"), "above"),
        ("Mul", ("above", "per_step"), "steps"),
        ("Clip", ("steps", "zero", "one"), "clipped"),
        ("MatMul", ("clipped", "mean_of_steps"), "percentile"),
    ]
    named = [
        (
            operator,
            tuple(features if name == _FEATURES else f"{OUTPUT}/{name}" for name in inputs),
            f"{OUTPUT}/{output}",
        )
        for operator, inputs, output in steps
    ]
    return [*named, ("Sub", (f"{OUTPUT}/one", f"{OUTPUT}/percentile"), OUTPUT)]
