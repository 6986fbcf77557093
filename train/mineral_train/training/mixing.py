"""Images of a training batch mixed in pairs, with their labels: mixup and CutMix."""

from __future__ import annotations

import math

import torch

_MIXUP_BETA = 0.4


def mixed(
    pixels: torch.Tensor, targets: torch.Tensor, mixup: float, cutmix: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix each image of a batch with another one, and their targets alike.

    Args:
        pixels: (N, 3, H, W) uint8.
        targets: (N, L).
        mixup: probability of blending the images.
        cutmix: probability of replacing a rectangle instead; else the batch is returned as it is.

    Returns:
        Pixels, float32 if they were blended, and targets. The share of the image itself is at least one half: several
        labels at once are common, so which of two is the first one must not be a matter of chance.
    """
    chance = float(torch.rand(()))
    if chance < mixup:
        return _blended(pixels, targets)
    return _pasted(pixels, targets) if chance < mixup + cutmix else (pixels, targets)


def _blended(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al. 2018, equation 1)."""
    share = _larger_share(_MIXUP_BETA)
    other = torch.randperm(len(pixels)).to(pixels.device)
    blended = share * pixels + (1 - share) * pixels[other]
    # Indexing forgets the order in memory in which convolutions are fast.
    return blended.contiguous(memory_format=torch.channels_last), share * targets + (1 - share) * targets[other]


def _pasted(pixels: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CutMix (Yun et al. 2019, equations 1 and 2), one rectangle for the batch.

    The paper draws the center and cuts off what lies outside. Here the rectangle is inside the image, so that its area
    is the share of the labels.
    """
    height, width = pixels.shape[2:]
    side = math.sqrt(1 - _larger_share(1.0))
    rows, columns = _span(height, side), _span(width, side)
    other = torch.randperm(len(pixels)).to(pixels.device)
    pasted = pixels.clone()
    pasted[:, :, rows, columns] = pixels[:, :, rows, columns][other]
    share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return pasted, share * targets + (1 - share) * targets[other]


def _larger_share(beta: float) -> float:
    share = float(torch.distributions.Beta(beta, beta).sample())
    return max(share, 1 - share)


def _span(size: int, side: float) -> slice:
    """Place a piece of `side` times `size` pixels at random within `size`."""
    length = round(size * side)
    start = int(torch.randint(size - length + 1, ()))
    return slice(start, start + length)
