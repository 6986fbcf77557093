"""The module that is exported with maps: where the model looks, as further outputs of the same graph.

Grad-CAM needs the gradient of a logit, and ONNX has no gradients. So the part of the model after the features is traced
together with its backward pass into plain operators, which become part of the graph.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from mineral_batch.explain.explainer import open_explainer
from mineral_batch.explain.maps import GRAD_CAM, MapSpec
from mineral_export.export_model import ExportModel
from mineral_export.verify.parity import ParityError
from mineral_train.maps import classify_with_grad_cam, cross_attention, grad_cam, grid, on_grid, to_largest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch.fx import GraphModule

    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels
    from mineral_train.model.network import MineralNet

    Start = tuple[Tensor, Tensor] | None

#: Outputs of the graph, in this order; a graph without maps has the first one.
OUTPUTS = ("probabilities", "top_labels", "maps")

#: Largest difference, on the scale 0..1, between two maps of the same image. Where hardly anything in an image speaks
#: for a label, the map is the small rest of large sums, and float32 summed in another order moves it.
MAP_TOLERANCE = 0.01


class ExportModelWithMaps(ExportModel):
    """A trained model as it is deployed, with a map for each of an image's most probable labels.

    Args:
        model: as for `ExportModel`.
        spec: as for `ExportModel`.
        method: of the maps, one of `mineral_batch.explain.maps.METHODS`.
        top: K, the number of maps for each image; all labels if there are fewer.

    Attributes:
        maps: what the graph states about its maps.

    Raises:
        DataError: if the model has no such maps.
    """

    def __init__(self, model: MineralNet, spec: InputSpec, method: str, top: int) -> None:
        super().__init__(model, spec)
        self.maps = MapSpec(method, grid(model), min(top, len(model.config.labels)))
        if method == GRAD_CAM:
            self._trace_head()
        else:
            self._attention_head(torch.zeros(1, model.layout.tokens, model.layout.channels))  # refuses other models

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        """Predict, with maps.

        Args:
            pixels: (N, H, W, 3) uint8 RGB.

        Returns:
            Probabilities (N, L) float32; the K most probable labels (N, K) int64, the most probable first; their maps
            (N, K, rows, columns) float32, 0..1.
        """
        tokens = self.features(pixels)
        head = self._grad_cam_head if self.maps.method == GRAD_CAM else self._attention_head
        logits, labels, maps = head(tokens)
        return torch.sigmoid(logits), labels, on_grid(maps, self.maps.grid)

    def _choose(self, logits: Tensor) -> Tensor:
        return logits.topk(self.maps.top, dim=1).indices

    def _attention_head(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.model.classify(tokens, self.start)
        labels = self._choose(logits)
        weights = self.model.cross_attention(tokens, self.start).mean(dim=1)  # (N, L, T)
        chosen = weights.gather(1, labels[..., None].expand(-1, -1, weights.shape[-1]))
        return logits, labels, to_largest(chosen)

    def _grad_cam_head(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parameters = {name: self.get_buffer(held) for name, held in self._held.items()}
        # The traced function expects the memory layout of the tokens that it was traced with.
        outputs: tuple[Tensor, Tensor, Tensor] = self.traced(parameters, self.start, tokens.contiguous())
        return outputs

    def _trace_head(self) -> None:
        """Make `traced`, a function of (parameters, start, tokens), and keep its parameters as buffers.

        They must be arguments: parameters that the tracer meets on its way would become constants of its own, and be
        in the graph twice.
        """
        parameters = {
            f"model.{name}": tensor.detach()
            for name, tensor in self.model.named_parameters()
            if not name.startswith("backbone.")
        }
        self.traced = _traced(self.model, parameters, self.start, self._choose)
        self._held = {name: f"held_{index}" for index, name in enumerate(parameters)}
        for name, held in self._held.items():
            self.register_buffer(held, parameters[name], persistent=False)


class _Classify(nn.Module):
    """`model.classify` as a module, so that `functional_call` can swap its parameters."""

    def __init__(self, model: MineralNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, start: Start) -> Tensor:
        return self.model.classify(tokens, start)


def _traced(
    model: MineralNet, parameters: Mapping[str, Tensor], start: Start, choose: Callable[[Tensor], Tensor]
) -> GraphModule:
    """Trace classification with Grad-CAM into operators, for any batch."""
    module = _Classify(model)

    def head(parameters: dict[str, Tensor], start: Start, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return classify_with_grad_cam(
            lambda features: functional_call(module, parameters, (features, start)), tokens, choose
        )

    layout = model.layout
    sizes = {size for tensor in parameters.values() for size in tensor.shape} | {
        layout.tokens,
        layout.channels,
    }
    tokens = torch.zeros(_batch_unlike(sizes), layout.tokens, layout.channels)
    traced = make_fx(head, tracing_mode="symbolic")(dict(parameters), start, tokens)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def _batch_unlike(sizes: set[int]) -> int:
    """Return a batch size to trace with: the tracer takes two equal sizes for one symbol, which would fix the batch."""
    return next(n for n in _primes() if all(size % n for size in sizes))


def _primes() -> Iterator[int]:
    """Primes from 3 on: 1 would become a constant, and 2 divides most sizes."""
    return (n for n in count(3) if all(n % d for d in range(2, n)))


def require_same_maps(model: ExportModelWithMaps, file: Path, pixels: Pixels) -> float:
    """Compare a written file's maps with torch's, for the labels that the file chose.

    Args:
        model: what was exported.
        file: the ONNX file.
        pixels: (N, H, W, 3) uint8.

    Returns:
        The largest difference, on the scale 0..1.

    Raises:
        ParityError: if that exceeds `MAP_TOLERANCE`.
    """
    reference = grad_cam if model.maps.method == GRAD_CAM else cross_attention
    with open_explainer(file) as explainer:
        answer = explainer.infer(pixels)
    normalized = model.normalize(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))
    expected = reference(model.model, normalized, torch.from_numpy(answer.labels)).numpy()
    largest = float(np.abs(answer.maps - expected).max())
    if not largest <= MAP_TOLERANCE:
        raise ParityError(
            f"nothing was written: a map differs from torch's by {largest:.2g}, more than the tolerance of "
            f"{MAP_TOLERANCE:g}"
        )
    return largest
