"""A ViT's attention as one ONNX operator, for engines that have a kernel for all of it.

ONNX knows `Attention` from opset 23 on. ONNX Runtime's CUDA engine runs it, in FP16, as flash attention, which keeps
the scores (N, H, T, T) on the chip; written out they go to memory and back several times: for the paper's model about
1.1 GB a picture, more than all the rest. Its inputs (N, T, C) need neither the split by `Slice` nor the transposition
that torch's exporter writes for timm's module, and on ONNX Runtime's CPU engine the graph is a little faster, too.
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

#: The first opset with the operator.
ATTENTION_OPSET = 23


@contextmanager
def as_one_operator(model: nn.Module) -> Iterator[None]:
    """In the block timm's attention modules that normalise neither queries nor keys compute by the operator."""
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
    """Nothing between the projection and the scores, nor at the scores' result; `gate` is of later releases of timm."""
    is_direct = isinstance(module.q_norm, nn.Identity) and isinstance(module.k_norm, nn.Identity)
    return is_direct and getattr(module, "gate", None) is None


def _attend(self: Any, x: torch.Tensor, attn_mask: torch.Tensor | None = None, is_causal: bool = False) -> torch.Tensor:
    """(N, T, C) -> (N, T, C); equation 1 of Vaswani et al. 2017, arXiv:1706.03762."""
    q, k, v = self.qkv(x).chunk(3, dim=-1)
    heads = {"q_num_heads": self.num_heads, "kv_num_heads": self.num_heads}
    mixed, *_ = torch.onnx.ops.attention(q, k, v, attn_mask, is_causal=is_causal, scale=self.scale, **heads)
    if hasattr(self, "norm"):  # not before timm 1.0.16
        mixed = self.norm(mixed)
    attended: torch.Tensor = self.proj_drop(self.proj(mixed))
    return attended
