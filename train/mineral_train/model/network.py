"""The network: backbone -> tokens -> projection -> label decoder -> logits (Wu et al. 2022, section 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mineral_batch.errors import DataError
from mineral_train.model.backbones import (
    FeatureLayout,
    create_backbone,
    feature_layout,
    input_spec_of,
    stage_channels,
    stage_maps,
)
from mineral_train.model.decoder import LinearProjection, make_decoder, make_head, make_projection
from mineral_train.model.fusion import FUSED_STAGES, StageFusion, StageTokens
from mineral_train.model.presets import PAPER_PARAMETERS, PRESETS, ModelConfig, preset
from mineral_train.model.pretrained import Loaded, load_backbone

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.model.contract import InputSpec

__all__ = [
    "PAPER_PARAMETERS",
    "PRESETS",
    "MineralNet",
    "ModelConfig",
    "build_model",
    "input_spec",
    "parameters_by_part",
    "parameters_like_the_paper",
    "preset",
]


class MineralNet(nn.Module):
    """The whole network, normalized images (N, 3, H, W) to logits (N, L); tokens stand between its two halves.

    The parts are sub-modules in the order of the data. Which of them work depends on `config.method`:

    | method | features | classify |
    |---|---|---|
    | decoder | backbone | projection, decoder, head |
    | pool | backbone | mean over tokens, head |
    | fusion | backbone's last stages, projection (`StageFusion`) | mean over tokens, head |

    With `config.stages` above 1, `decoder` and `pool` begin with the backbone's last stages side by side (`tokens`).

    Args:
        config: what to build.
        backbone: a timm model without classifier, for images of `config.image_size`.
        loaded: where its weights came from.

    Attributes:
        config: as given.
        layout: of the tokens; `layout.grid` says which places they are.
        loaded: as given.
        backbone: the timm model.
        tokens: `StageTokens` of several stages, else `nn.Identity`; it has nothing to learn.
        projection: `nn.Identity` for `pool`.
        decoder: `nn.Identity` but for `decoder`.
        head_dropout: of the pooled features; does nothing in evaluation mode.
        head: to logits.
    """

    def __init__(self, config: ModelConfig, backbone: nn.Module, loaded: Loaded) -> None:
        super().__init__()
        self.config = config
        self.loaded = loaded
        self.backbone = backbone
        self.tokens: nn.Module = nn.Identity()
        self.projection: nn.Module = nn.Identity()
        self.decoder: nn.Module = nn.Identity()
        self.head_dropout = nn.Dropout(config.head_dropout)
        {"decoder": self._add_decoder, "pool": self._add_pool, "fusion": self._add_fusion}[config.method]()

    def _add_decoder(self) -> None:
        self.layout = self._make_tokens()
        tokens, channels = self.layout.tokens, self.layout.channels
        self.projection = make_projection(self.config, tokens, channels, is_map=self.layout.is_map)
        self.decoder = make_decoder(self.config)
        self.head = make_head(self.config)

    def _add_pool(self) -> None:
        self.layout = self._make_tokens()
        self.head = nn.Linear(self.layout.channels, len(self.config.labels))

    def _make_tokens(self) -> FeatureLayout:
        if self.config.stages == 1:
            return feature_layout(self.backbone, self.config.image_size)
        channels, grid = stage_channels(self.backbone, self.config.image_size, self.config.stages)
        self.tokens = StageTokens(channels)
        return FeatureLayout(grid[0] * grid[1], sum(channels), grid, is_map=True)

    def _add_fusion(self) -> None:
        width = self.config.width
        channels, grid = stage_channels(self.backbone, self.config.image_size, FUSED_STAGES)
        self.layout = FeatureLayout(grid[0] * grid[1], width, grid, is_map=True)
        self.projection = StageFusion(channels, width)
        self.head = nn.Linear(width, len(self.config.labels))

    def features(self, x: Tensor) -> Tensor:
        """Compute the tokens: the backbone's features after its last norm (or stages), without class tokens.

        Args:
            x: (N, 3, image_size, image_size) float, normalized as `input_spec` says.

        Returns:
            Tokens (N, T, C), row-major over `layout.grid`.
        """
        if self.config.method == "fusion":
            fused: Tensor = self.projection(stage_maps(self.backbone, x, FUSED_STAGES))
            return fused
        if self.config.stages > 1:
            tokens: Tensor = self.tokens(stage_maps(self.backbone, x, self.config.stages))
            return tokens
        return self.layout.read(self.backbone.forward_features(x))  # type: ignore[operator]

    def classify(self, tokens: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Classify tokens (N, T, C): logits (N, L).

        Args:
            tokens: of `features`.
            start: result of `decoder.queries()` that an exporter holds as constants; None computes it.
        """
        if self.config.method == "decoder":
            logits: Tensor = self.head(self.decoder(self.projection(tokens), start))
        else:
            logits = self.head(self.head_dropout(tokens.mean(dim=1)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, L)."""
        return self.classify(self.features(x))

    def cross_attention(self, tokens: Tensor, start: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Cross-attention of each label in the last decoder block: tokens (N, T, C) to weights (N, heads, L, T).

        Args:
            tokens: of `features`.
            start: as in `classify`.

        Raises:
            DataError: if the model has no decoder, or its memory's positions are not places (projection reshape).
        """
        if self.config.method != "decoder" or not isinstance(self.projection, LinearProjection):
            raise DataError(
                "cross-attention can be shown on the image for method decoder with projection linear only, not for "
                f"method {self.config.method} with projection {self.config.projection}: use Grad-CAM"
            )
        weights: Tensor = self.decoder.attention(self.projection(tokens), start)  # type: ignore[operator]
        return weights


def build_model(config: ModelConfig, *, pretrained: bool | Path = False, seed: int | None = None) -> MineralNet:
    """Build a network, with random or pretrained backbone weights.

    Args:
        config: what to build.
        pretrained: False for random weights, True for timm's hub, or a .safetensors or .pth file of the backbone: with
            timm's names, or the same tensors in the same order under other names; a checkpoint of this package
            gives its backbone. Its classifier is left out, position embeddings are resampled to the grid.
        seed: of the random weights: the same seed gives the same weights, whatever was drawn before, and torch's
            global generator is left as it was. None draws from that.

    Returns:
        In training mode, on the CPU (or the device of a surrounding `with torch.device(...)`), float32.
        `model.loaded` says what was loaded.

    Raises:
        DataError: if timm has no such backbone, the weights cannot be had, or the parts do not fit together.
    """
    if seed is None:
        return MineralNet(config, *load_backbone(config, pretrained))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MineralNet(config, *load_backbone(config, pretrained))


def input_spec(config: ModelConfig) -> InputSpec:
    """How an image becomes this model's input: the normalization and filter that its backbone was pretrained with."""
    return input_spec_of(config.backbone, config.image_size)


def parameters_by_part(model: MineralNet) -> dict[str, int]:
    """How many parameters each part has; they add up to the whole."""
    parts = ("backbone", "projection", "decoder", "head")
    return {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in parts}


def parameters_like_the_paper(config: ModelConfig) -> int:
    """Count parameters so that they compare with the column of the paper's Table 3.

    That column is not the whole model: it is the backbone with one linear layer to the labels in the place of its
    classifier, without projection and decoder, and without what is not a layer's weight or bias (ViT's class token and
    position embedding, 443,904 numbers, which counting tools of the torchsummary kind overlook). So counted:

    | preset | ours | paper (M) |
    |---|---|---|
    | mobilenet-v2 | 2,269,988 | 2.27 |
    | bit-m-r101x1 | 42,566,244 | 42.56 (cut off, not rounded) |
    | resnet-101 | 42,573,924 | 42.57 |
    | vit-b16-384 | 85,674,276 | 85.67 |
    """
    with torch.device("meta"):
        backbone = create_backbone(config.backbone, config.image_size)
    layers = sum(p.numel() for name, p in backbone.named_parameters() if name.endswith((".weight", ".bias")))
    channels = int(backbone.num_features)  # type: ignore[arg-type]
    return layers + (channels + 1) * len(config.labels)
