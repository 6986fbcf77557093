"""Grad-CAM and cross-attention maps in torch, the reference for the maps of an exported graph.

Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) on the backbone's output, as in figure 6 of Wu et al. 2022: the
tokens (N, T, C) are read as C feature maps A_c of rows x columns,

    w_c = mean over places of d logit_k / d A_c,    map_k = ReLU(sum_c w_c A_c).

A map is divided by its largest value, so it says where, not how much. It is all zeros if nothing in the image supports
the label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_train.model.network import MineralNet

# Below the smallest normal float32 a quotient says nothing; a map of zeros stays one.
_TINY = float(torch.finfo(torch.float32).tiny)


def grad_cam(model: MineralNet, x: Tensor, labels: Tensor) -> Tensor:
    """Compute Grad-CAM of chosen labels, each image with its own.

    Args:
        model: in eval mode, so that no image depends on its neighbors; its parameters get no gradients.
        x: (N, 3, H, W) float32, normalized.
        labels: (N, K) int64, indices of labels.

    Returns:
        (N, K, rows, columns) float32, 0..1, detached.

    Raises:
        DataError: if the model's tokens are not places in the image.
    """
    rows, columns = grid(model)
    with torch.no_grad():
        tokens = model.features(x)
    with torch.enable_grad():
        _, _, maps = classify_with_grad_cam(model.classify, tokens, lambda _: labels)
    return on_grid(maps, (rows, columns))


def classify_with_grad_cam(
    classify: Callable[[Tensor], Tensor], tokens: Tensor, choose: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, and Grad-CAM of labels that are chosen by them.

    The gradients of all images' k-th labels come from one backward pass: a logit depends on its own image only,
    so the sum over the batch mixes nothing.

    Args:
        classify: tokens (N, T, C) to logits (N, L), each image by itself.
        tokens: features, (N, T, C).
        choose: logits (N, L) to indices (N, K) int64.

    Returns:
        The logits (N, L), the chosen indices (N, K) and their maps (N, K, T), 0..1; all detached.
    """
    tokens = tokens.detach().requires_grad_()
    logits = classify(tokens)
    labels = choose(logits.detach())
    every = torch.arange(logits.shape[1], device=logits.device)
    maps = []
    for label in labels.unbind(dim=1):
        # A mask, not an index: its gradient is the mask itself, where that of gather is a scatter.
        target = (logits * (every == label[:, None])).sum()
        (gradient,) = torch.autograd.grad(target, tokens, retain_graph=True)
        maps.append(_weighted_sum(gradient, tokens.detach()))
    return logits.detach(), labels, to_largest(torch.stack(maps, dim=1))


def _weighted_sum(gradient: Tensor, tokens: Tensor) -> Tensor:
    """ReLU(sum_c w_c A_c) for one label an image: two times (N, T, C) to (N, T)."""
    weights = gradient.mean(dim=1, keepdim=True)  # (N, 1, C)
    return torch.relu((weights * tokens).sum(dim=-1))


def cross_attention(model: MineralNet, x: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-attention of chosen labels in the last decoder block, mean over heads.

    Args and the result are those of `grad_cam`.

    Raises:
        DataError: if the model has no decoder over places.
    """
    rows, columns = grid(model)
    with torch.no_grad():
        weights = model.cross_attention(model.features(x)).mean(dim=1)  # (N, L, T)
    chosen = weights.gather(1, labels[..., None].expand(-1, -1, weights.shape[-1]))
    return on_grid(to_largest(chosen), (rows, columns))


def to_largest(maps: Tensor) -> Tensor:
    """Each map (..., T) divided by its largest value."""
    return maps / maps.amax(dim=-1, keepdim=True).clamp(min=_TINY)


def on_grid(maps: Tensor, places: tuple[int, int]) -> Tensor:
    """(..., T) to (..., rows, columns), row-major."""
    unfolded: Tensor = maps.unflatten(-1, places)  # type: ignore[no-untyped-call]
    return unfolded


def grid(model: MineralNet) -> tuple[int, int]:
    """(rows, columns) of the model's tokens as places in the image.

    Raises:
        DataError: if they are no places.
    """
    if model.layout.grid is None:
        raise DataError(
            f"the {model.layout.tokens} tokens of backbone {model.config.backbone} form no grid of places, so there "
            f"is no image of where it looks: choose a ViT, a Swin or a CNN"
        )
    return model.layout.grid
