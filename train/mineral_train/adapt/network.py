"""The torch module of a frozen backbone, as it is exported."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mineral_train.model.normalize import Normalize

if TYPE_CHECKING:
    from mineral_batch.model.contract import InputSpec


class FrozenBackbone(nn.Module):
    """uint8 images in, the probability of one label that nobody has fitted yet out.

    Args:
        backbone: a timm model without classifier, whose call gives pooled features (N, C).
        spec: its input.
    """

    def __init__(self, backbone: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalize = Normalize(spec)
        self.eval()
        with torch.inference_mode():
            channels = self.features(torch.zeros(1, *spec.shape, dtype=torch.uint8)).shape[1]
        self.head = nn.Linear(channels, 1)
        for parameter in self.head.parameters():
            # Not all the same: an exporter that folds constants must not find a simpler layer.
            nn.init.normal_(parameter, std=0.01, generator=torch.Generator().manual_seed(0))
        self.eval()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB to pooled features (N, C)."""
        pooled: torch.Tensor = self.backbone(self.normalize(pixels.float().permute(0, 3, 1, 2)))
        return pooled

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 RGB to probabilities (N, 1)."""
        return torch.sigmoid(self.head(self.features(pixels)))
