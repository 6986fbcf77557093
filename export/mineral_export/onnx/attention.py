"""A ViT's attention as one ONNX operator, for engines that have a kernel for all of it.

ONNX has `Attention` from opset 23 on. ONNX Runtime's CUDA engine runs it in FP16 as flash attention, which keeps the
scores (N, H, T, T) on the chip; as separate operators they go to memory and back several times, for the paper's model
about 1.1 GB an image, more than everything else. Its inputs (N, T, C) also need neither the `Slice` nor the transpose
that torch's exporter writes for timm's module, and the graph is slightly faster on ONNX Runtime's CPU engine.
"""

from __future__ import annotations

from contextlib import contextmanager
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mineral_train.model.backbones import import_timm

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def as_one_operator(model: nn.Module) -> Iterator[None]:
    """Within the block, compute timm's attention modules without query or key normalization by the operator."""
    attention = import_timm().models.vision_transformer.Attention
    modules: list[Any] = [module for module in model.modules() if type(module) is attention and _is_plain(module)]
    for module in modules:
        module.forward = MethodType(_attend, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _is_plain(module: Any) -> bool:
    """Whether nothing changes queries, keys or the output; `gate` exists in later releases of timm only."""
    is_direct = isinstance(module.q_norm, nn.Identity) and isinstance(module.k_norm, nn.Identity)
    return is_direct and getattr(module, "gate", None) is None


def _attend(self: Any, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
    """(N, T, C) -> (N, T, C); equation 1 of Vaswani et al. 2017, arXiv:1706.03762."""
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    heads = {"q_num_heads": self.num_heads, "kv_num_heads": self.num_heads}
    mixed, *_ = torch.onnx.ops.attention(q, k, v, attn_mask, is_causal=is_causal, scale=self.scale, **heads)
    if hasattr(self, "norm"):  # from timm 1.0.16 on
        mixed = self.norm(mixed)
    attended: torch.Tensor = self.proj_drop(self.proj(mixed))
    return attended
