"""Normalization of pixels, on the device; training and export share it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mineral_batch.model.contract import InputSpec


class Normalize(nn.Module):
    """`(pixels / 255 - mean) / std` in float32, by the channel mean and standard deviation of an `InputSpec`.

    It lies outside the backbone so that four times fewer bytes travel to the device, and inside the exported
    graph so that training and deployment cannot differ. It has no parameters and adds nothing to a state dict.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalize `pixels`, (N, 3, H, W) uint8 RGB, to (N, 3, H, W) float32."""
        normalized: torch.Tensor = (pixels.to(torch.float32) / 255.0 - self.mean) / self.std
        return normalized
