"""The configuration of a model, and a preset for every row of the paper's tables.

Paper: Wu et al., "Mineral Identification Based on Multi-Label Image Classification", Minerals 2022, 12(11), 1338.
Nothing here imports torch, so that a command can list the presets at once.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.minerals import MINERALS

if TYPE_CHECKING:
    from collections.abc import Mapping

Method = Literal["decoder", "pool", "fusion"]
Projection = Literal["reshape", "linear"]
Head = Literal["flatten", "group"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's modules and their shapes.

    The defaults are the paper's model. The paper does not state the number of blocks, heads, the FFN's width or the
    dropout: one block is what its Figure 3 draws, the others are Query2Label's, the model it builds on.

    Attributes:
        backbone: a timm model name, with the pretrained tag after the dot if it matters.
        image_size: height and width of the input, pixels.
        method: `decoder` (the paper), `pool` (mean over the tokens + linear, the plain baseline) or `fusion` (the
            last three stages fused before pooling, Jia et al. 2021; see `mineral_train.model.fusion`).
        stages: for `decoder` and `pool`: 1 takes the backbone's last features as tokens, as in the paper; more takes so
            many of its last stages side by side (see `fusion.StageTokens`), which helped the starter model once it
            was fine-tuned (see its card). `fusion` always takes three.
        projection: how tokens become the decoder's memory: `reshape` (the paper) or `linear`; see
            `mineral_train.model.decoder`. For a CNN's feature map both mean the paper's 1x1 convolution.
        head: `flatten` (the paper: one linear layer on all label states together) or `group` (Query2Label: each
            label's state has its own weight vector and bias).
        width: of the decoder; for `fusion`, the common width of the stages.
        blocks: decoder blocks.
        heads: attention heads; must divide `width`.
        ffn: hidden width of the feed-forward network.
        dropout: probability, in the decoder only.
        head_dropout: probability, of the pooled features before the linear layer of `pool` and `fusion`.
        drop_path: stochastic depth of the backbone, the highest probability.
        labels: L names in the order of the outputs.

    Raises:
        DataError: when a value is outside its range.
    """

    backbone: str = "vit_base_patch16_384.augreg_in21k_ft_in1k"
    image_size: int = 384
    method: Method = "decoder"
    stages: int = 1
    projection: Projection = "reshape"
    head: Head = "flatten"
    width: int = 2048
    blocks: int = 1
    heads: int = 4
    ffn: int = 8192
    dropout: float = 0.1
    head_dropout: float = 0.0
    drop_path: float = 0.0
    labels: tuple[str, ...] = MINERALS

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))
        for name, choices in {"method": Method, "projection": Projection, "head": Head}.items():
            value, allowed = getattr(self, name), get_args(choices)
            _require(value in allowed, f"model.{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name in ("image_size", "stages", "width", "blocks", "heads", "ffn"):
            value = getattr(self, name)
            _require(
                type(value) is int and value >= 1,
                f"model.{name} must be a whole number from 1, got {value!r}",
            )
        for name in ("dropout", "head_dropout", "drop_path"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"model.{name} must be from 0 to below 1, got {value!r}")
        _require(
            self.width % self.heads == 0,
            f"model.width must be a multiple of model.heads, got {self.width} and {self.heads}",
        )
        _require(
            self.head_dropout == 0 or self.method != "decoder",
            "model.head_dropout is for methods pool and fusion; the decoder has model.dropout",
        )
        _require(len(self.labels) > 0, "model.labels is empty: a model needs at least one label")

    def to_json(self) -> dict[str, Any]:
        """Convert to a record for `json.dumps` that `from_json` reads back to an equal config."""
        return asdict(self) | {"labels": list(self.labels)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ModelConfig:
        """Read and check a config.

        Raises:
            DataError: naming the field that is unknown or wrong.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(record) - set(known))
        _require(not unknown, f"model config has unknown fields {unknown}; known are {known}")
        try:
            return cls(**record)
        except TypeError as error:
            raise DataError(f"model config has a value of the wrong type: {plain_reason(error)}") from error


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)


def _tiny(backbone: str, image_size: int) -> ModelConfig:
    """Make a preset with a decoder in proportion to a backbone of a few million parameters."""
    return ModelConfig(backbone, image_size, width=256, ffn=1024)


#: The presets. The first six are the rows of the paper's Tables 3 and 5; which weights a row starts from:
#:
#: - `vit-b16-384`: AugReg, ImageNet-21k then ImageNet-1k at 384 (Steiner et al. 2022), timm's default for this
#:   model and more accurate on ImageNet than the original release (`orig_in21k_ft_in1k`).
#: - `mobilenet-v2`: `ra_in1k`, the only weights timm has for it.
#: - `bit-m-r101x1`: `goog_in21k` is BiT-M itself; `goog_in21k_ft_in1k` is BiT-M after fine-tuning on ImageNet-1k.
#: - `resnet-101`, `resnet50-fusion`: `tv_in1k`, torchvision's first release: "ImageNet-pretrained, official PyTorch
#:   code" meant these when the paper was written. timm's `a1_in1k` scores higher on ImageNet with a far longer recipe.
#: - `swin-b-384`: Microsoft's own, ImageNet-22k then ImageNet-1k at 384. The paper could not fit it on its GPU.
#:
#: The last four are small enough for a CPU.
PRESETS: dict[str, ModelConfig] = {
    "vit-b16-384": ModelConfig(),
    "mobilenet-v2": ModelConfig("mobilenetv2_100.ra_in1k"),
    "bit-m-r101x1": ModelConfig("resnetv2_101x1_bit.goog_in21k"),
    "resnet-101": ModelConfig("resnet101.tv_in1k"),
    "swin-b-384": ModelConfig("swin_base_patch4_window12_384.ms_in22k_ft_in1k"),
    "resnet50-fusion": ModelConfig("resnet50.tv_in1k", method="fusion", width=256),
    "vit-tiny-224": _tiny("vit_tiny_patch16_224.augreg_in21k_ft_in1k", 224),
    "efficientnet-lite0": _tiny("tf_efficientnet_lite0.in1k", 224),
    "efficientnet-lite1": _tiny("tf_efficientnet_lite1.in1k", 240),
    "efficientnet-lite2": _tiny("tf_efficientnet_lite2.in1k", 260),
}

#: Parameters in millions from Table 3; `mineral_train.model.network.parameters_like_the_paper` counts the same way.
PAPER_PARAMETERS: dict[str, float] = {
    "mobilenet-v2": 2.27,
    "bit-m-r101x1": 42.56,
    "resnet-101": 42.57,
    "vit-b16-384": 85.67,
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """Return a preset with some of its fields changed.

    Raises:
        DataError: if there is no such preset, or a changed value is outside its range.
    """
    if name not in PRESETS:
        raise DataError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return replace(PRESETS[name], **changes)
