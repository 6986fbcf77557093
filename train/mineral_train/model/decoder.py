"""The paper's decoder (Wu et al. 2022, section 3): label embeddings attend to the image's features.

Attention is written out (separate query, key and value projections, matmul, softmax) because torch's fused and packed
forms have no ONNX form for their backward pass, which explanations inside the exported graph need.

Neither the memory nor the label embeddings get positional encodings here. The paper mentions none after the backbone;
ViT tokens carry the backbone's own; and whether a mineral is present does not depend on where.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_train.model.presets import ModelConfig

#: Positions of the memory that the paper's reshape makes: 576 x 768 becomes 1728 x 256.
RESHAPED_POSITIONS = 256


class ReshapeProjection(nn.Module):
    """The paper's projection of ViT tokens: 576 x 768, reshaped to 1728 x 256, by a 1x1 convolution to 2048 x 256.

    For other sizes, T x C is reshaped (row-major) to (T C / 256) x 256. The reshape mixes the token and the channel
    axis: the memory's 256 positions are not places in the image.

    Args:
        tokens: T.
        channels: C; T C must be a multiple of 256.
        width: D.

    Raises:
        DataError: if T C is not a multiple of 256.
    """

    def __init__(self, tokens: int, channels: int, width: int) -> None:
        super().__init__()
        rows, rest = divmod(tokens * channels, RESHAPED_POSITIONS)
        if rest:
            raise DataError(
                f"--projection reshape needs tokens x channels to be a multiple of {RESHAPED_POSITIONS}, got "
                f"{tokens} x {channels}: use --projection linear or another --image-size"
            )
        self.rows = rows
        self.convolution = nn.Conv1d(rows, width, kernel_size=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, C) -> (N, 256, D)."""
        table = tokens.reshape(-1, self.rows, RESHAPED_POSITIONS)
        # A 1x1 convolution written as a matrix product: its backward pass has an ONNX form, a convolution's has none,
        # and explanations inside the exported graph need one.
        return functional.linear(table.transpose(1, 2), self.convolution.weight.squeeze(-1), self.convolution.bias)


class LinearProjection(nn.Linear):
    """Each token by itself, C -> D. The memory keeps its places, so cross-attention can be shown on the image.

    On a flattened feature map this is the paper's 1x1 convolution for CNNs.
    """


class Attention(nn.Module):
    """Multi-head attention: softmax(Q K^T / sqrt(d)) V with d = D / heads.

    Args:
        width: D.
        heads: H, must divide D.
        dropout: probability that an attention weight is dropped in training.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.query = _xavier(width, width)
        self.key = _xavier(width, width)
        self.value = _xavier(width, width)
        self.out = _xavier(width, width)
        self.dropout = nn.Dropout(dropout)

    def queries(self, x: Tensor) -> Tensor:
        """Project to scaled queries: (N, S, D) -> (N, H, S, d)."""
        return self._split(self.query(x) * self.scale)

    def weights(self, q: Tensor, memory: Tensor) -> Tensor:
        """Attention weights: (N or 1, H, S, d) and (N, T, D) -> (N, H, S, T), each row summing to 1."""
        return torch.softmax(q @ self._split(self.key(memory)).transpose(-2, -1), dim=-1)

    def forward(self, q: Tensor, memory: Tensor) -> Tensor:
        """Attend to the memory: (N or 1, H, S, d) and (N, T, D) -> (N, S, D)."""
        attended = self.dropout(self.weights(q, memory)) @ self._split(self.value(memory))  # (N, H, S, d)
        joined: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


def _xavier(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer initialized as Query2Label's (and DETR's): Xavier, biases zero."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class DecoderBlock(nn.Module):
    """Self-attention over the labels, cross-attention to the memory, FFN; residual and LayerNorm after each.

    Equal to `torch.nn.TransformerDecoderLayer(norm_first=False)` with ReLU, in two halves: `self_attend` does not
    see the image, `cross_attend` does.

    Args:
        width: D.
        heads: H.
        ffn: hidden width of the feed-forward network.
        dropout: on attention weights, on the hidden layer and on what each part adds to the residual.
    """

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.ffn = nn.Sequential(_xavier(width, ffn), nn.ReLU(), nn.Dropout(dropout), _xavier(ffn, width))
        self.norm_self = nn.LayerNorm(width)
        self.norm_cross = nn.LayerNorm(width)
        self.norm_ffn = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def self_attend(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Self-attention of (N, L, D): the new state (N, L, D) and its queries to the memory (N, H, L, d)."""
        mixed = self.self_attention(self.self_attention.queries(labels), labels)
        state: Tensor = self.norm_self(labels + self.dropout(mixed))
        return state, self.cross_attention.queries(state)

    def cross_attend(self, state: Tensor, q: Tensor, memory: Tensor) -> Tensor:
        """Cross-attention and FFN: the label states (N, L, D); `state` and `q` may have batch 1."""
        state = self.norm_cross(state + self.dropout(self.cross_attention(q, memory)))
        decoded: Tensor = self.norm_ffn(state + self.dropout(self.ffn(state)))
        return decoded


class LabelDecoder(nn.Module):
    """Learned label embeddings and the decoder blocks.

    The first block's self-attention is the same for every image. `queries` computes it at batch 1 and broadcasting
    carries it to the batch: an exporter stores it as two constants and passes them as `start`, so that neither the
    label embeddings nor the first self-attention enter the graph. In training with dropout it is computed at the full
    batch instead, so that every image draws its own mask.

    Args:
        labels: L.
        width: D.
        blocks: how many.
        heads: H.
        ffn: hidden width of the feed-forward networks.
        dropout: see `DecoderBlock`.
    """

    def __init__(self, labels: int, width: int, blocks: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.empty(labels, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, ffn, dropout) for _ in range(blocks))
        self.dropout = dropout
        nn.init.normal_(self.labels)  # as Query2Label's and DETR's

    @property
    def _stack(self) -> Sequence[DecoderBlock]:
        return cast("Sequence[DecoderBlock]", self.blocks)

    def queries(self, batch: int = 1) -> tuple[Tensor, Tensor]:
        """Compute the part of the first block that does not depend on the image.

        Returns:
            The label state (batch, L, D) after self-attention and LayerNorm, and the scaled cross-attention queries
            (batch, H, L, d).
        """
        return self._stack[0].self_attend(self.labels.expand(batch, -1, -1))

    def forward(self, memory: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Decode the memory into label states.

        Args:
            memory: (N, T, D).
            start: the result of an earlier call of `queries`; None computes it now.

        Returns:
            (N, L, D), one state per label.
        """
        state, q = self._before_last_cross_attention(memory, start)
        return self._stack[-1].cross_attend(state, q, memory)

    def attention(self, memory: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Cross-attention weights of the last block: (N, T, D) -> (N, H, L, T); arguments as `forward`."""
        _, q = self._before_last_cross_attention(memory, start)
        return self._stack[-1].cross_attention.weights(q, memory)

    def _before_last_cross_attention(
        self, memory: Tensor, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        masks_differ = self.training and self.dropout > 0
        state, q = start if start is not None else self.queries(memory.shape[0] if masks_differ else 1)
        for block, following in pairwise(self._stack):
            state, q = following.self_attend(block.cross_attend(state, q, memory))
        return state, q


class FlattenHead(nn.Module):
    """The paper's head: one linear layer on all label states together, (N, L, D) -> (N, L)."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(labels * width, labels)

    def forward(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, L)."""
        logits: Tensor = self.linear(states.flatten(1))
        return logits


class GroupHead(nn.Module):
    """Query2Label's head: logit_k = w_k . h_k + b_k, each label's logit from its own state only."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        bound = width**-0.5
        self.weight = nn.Parameter(torch.empty(labels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(labels).uniform_(-bound, bound))

    def forward(self, states: Tensor) -> Tensor:
        """(N, L, D) -> (N, L)."""
        return (states * self.weight).sum(dim=-1) + self.bias


def make_projection(config: ModelConfig, tokens: int, channels: int, *, is_map: bool) -> nn.Module:
    """Make the layer (N, T, C) -> (N, positions, D). A CNN's feature map is always projected place by place."""
    if config.projection == "reshape" and not is_map:
        return ReshapeProjection(tokens, channels, config.width)
    return LinearProjection(channels, config.width)


def make_decoder(config: ModelConfig) -> LabelDecoder:
    """Make the decoder of a config."""
    return LabelDecoder(len(config.labels), config.width, config.blocks, config.heads, config.ffn, config.dropout)


def make_head(config: ModelConfig) -> nn.Module:
    """Make the layer (N, L, D) -> (N, L)."""
    kind = {"flatten": FlattenHead, "group": GroupHead}[config.head]
    head: nn.Module = kind(len(config.labels), config.width)
    return head
