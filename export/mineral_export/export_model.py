"""The PyTorch module that is exported: uint8 images in, probabilities out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mineral_train.model.decoder import LabelDecoder
from mineral_train.model.normalize import Normalize

if TYPE_CHECKING:
    from mineral_batch.model.contract import InputSpec
    from mineral_batch.types import Pixels, Probabilities
    from mineral_train.model.network import MineralNet


class ExportModel(nn.Module):
    """A trained model as it is deployed, with its normalization.

    What does not depend on the image is computed here, once, and enters the graph as constants: the label embeddings
    after the first block's self-attention, and their queries to the first cross-attention. For the paper's model that
    saves 1.2 GFLOP a batch and 68 MB of weights, which no graph optimizer finds by itself.

    Args:
        model: a trained `MineralNet`, float32, on the CPU; it is put into eval mode.
        spec: its input.
    """

    label_state: torch.Tensor
    label_queries: torch.Tensor

    def __init__(self, model: MineralNet, spec: InputSpec) -> None:
        super().__init__()
        self.model = model
        self.normalize = Normalize(spec)
        self.eval()  # before the constants are computed: dropout must not be in them
        if isinstance(model.decoder, LabelDecoder):
            with torch.no_grad():
                label_state, label_queries = model.decoder.queries()
            self.register_buffer("label_state", label_state, persistent=False)
            self.register_buffer("label_queries", label_queries, persistent=False)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32, as a `Backend` of the runtime does."""
        with torch.inference_mode():
            probabilities: Probabilities = self(torch.from_numpy(pixels)).numpy()
        return probabilities

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities."""
        return torch.sigmoid(self.model.classify(self.features(pixels), self.start))

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB -> tokens (N, T, C)."""
        # To float first, then transpose: TensorRT accepts uint8 as an input, but cannot transpose it.
        return self.model.features(self.normalize(pixels.float().permute(0, 3, 1, 2)))

    @property
    def start(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The label state and its queries, from which `classify` starts; None for a model without label decoder."""
        return (self.label_state, self.label_queries) if hasattr(self, "label_state") else None
