"""Several stages of a backbone at once: the other method of the paper's Table 5, and tokens of many resolutions.

The other method is multi-resolution features of a ResNet-50, fused (Jia et al. 2021).

Jia et al., Minerals 2021, 11, 1354, "fuses multi-resolution features extracted from ResNet-50"; how is not in our
sources. Our reading: the last three stages (C3, C4, C5) are each brought to one width by a 1x1 convolution and to the
grid of C4, added, smoothed by a 3x3 convolution, and pooled. As in Table 5, softmax is replaced by sigmoid, and the
loss is the one chosen for training, not their weighted top-k loss.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How many of a backbone's last stages are fused.
FUSED_STAGES = 3


class StageFusion(nn.Module):
    """Fuse feature maps of several resolutions to tokens on the grid of the middle one.

    Args:
        channels: of each stage, from the finest to the coarsest.
        width: D, of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(_convolution(c, width, 1) for c in channels)
        self.smooth = _convolution(width, width, 3)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i)] -> (N, T, D) with T = H W of the middle stage."""
        grid = stages[len(stages) // 2].shape[-2:]
        laterals = [lateral(stage) for lateral, stage in zip(self.laterals, stages, strict=True)]
        # At exactly half size, bilinear without antialiasing is the mean of 2 x 2: no other operator is needed.
        resized = [F.interpolate(x, size=grid, mode="bilinear", align_corners=False) for x in laterals]
        fused: Tensor = self.smooth(F.relu(sum(resized[1:], resized[0])))
        return F.relu(fused).flatten(2).transpose(1, 2)


class StageTokens(nn.Module):
    """Concatenate feature maps of several resolutions to tokens on the grid of the middle one.

    A backbone's last layers keep what tells its pretraining's classes apart; color and texture, by which minerals
    differ, are still to be had from the stages below. Each channel is standardized (BatchNorm without scale and
    shift), because the stages' magnitudes differ by more than a head's learning rate makes good.

    Args:
        channels: of each stage, from the finest to the coarsest.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        # Files of weights have the name `standardise`.
        self.standardise = nn.ModuleList(nn.BatchNorm2d(c, affine=False) for c in channels)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """[(N, C_i, H_i, W_i)] -> (N, T, C) with T = H W of the middle stage and C the sum of the C_i."""
        grid = stages[len(stages) // 2].shape[-2:]
        alike = [standard(stage) for standard, stage in zip(self.standardise, stages, strict=True)]
        resized = [F.interpolate(x, size=grid, mode="bilinear", align_corners=False) for x in alike]
        return torch.cat(resized, dim=1).flatten(2).transpose(1, 2)


def _convolution(channels: int, width: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width))
