"""Any timm backbone as a source of tokens (N, T, C)."""

from __future__ import annotations

import difflib
import functools
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mineral_batch.errors import DataError
from mineral_batch.model.contract import InputSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

_kept_alive: list[torch.library.Library] = []  # a library's declarations go when it does


@functools.cache
def import_timm() -> ModuleType:
    """`import timm`, also where torchvision's compiled operators do not load.

    timm imports torchvision, of which it uses the transforms only. Beside a torch of another build (a CPU torch with
    PyPI's torchvision is the common case) torchvision fails on import, because the schemas of `nms` and `qnms` are
    missing. Then, and only then, they are declared and the import is repeated: where the operators do load, a second
    declaration would be an error.
    """
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_missing_operators()
    import timm

    return timm


def _declare_missing_operators() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept_alive.append(library)


@dataclass(frozen=True)
class FeatureLayout:
    """How to read the result of a backbone's `forward_features`.

    Attributes:
        tokens: T, without extra tokens.
        channels: C.
        grid: (rows, columns) of the tokens as places in the image, row-major; None if they are not places.
        is_map: True for a feature map with two spatial axes, False for a sequence of tokens.
        channels_last: of a feature map: (N, H, W, C) instead of (N, C, H, W).
        extra: class, distillation or register tokens in front, which are dropped.
    """

    tokens: int
    channels: int
    grid: tuple[int, int] | None
    is_map: bool
    channels_last: bool = False
    extra: int = 0

    def read(self, features: Tensor) -> Tensor:
        """(N, C, H, W), (N, H, W, C) or (N, extra + T, C) -> (N, T, C)."""
        if not self.is_map:
            return features[:, self.extra :]
        return features.flatten(1, 2) if self.channels_last else features.flatten(2).transpose(1, 2)


def pretrained_cfg(name: str) -> Any:
    """Return timm's record of a model and its weights (a `timm.models.PretrainedCfg`).

    Raises:
        DataError: if timm has no such model or no such tag, with what it has.
    """
    timm = import_timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise DataError(f"timm {timm.__version__} has no model {architecture!r}; {hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise DataError(f"timm's {architecture} has no weights {tag!r}; there are: {', '.join(tags) or 'none'}")
    return timm.get_pretrained_cfg(name)


def input_spec_of(name: str, image_size: int) -> InputSpec:
    """Return the input a backbone was pretrained with, squashed to a square as in the paper."""
    cfg = pretrained_cfg(name)
    return InputSpec(
        height=image_size,
        width=image_size,
        resize="squash",
        interpolation="bilinear" if cfg.interpolation == "bilinear" else "bicubic",
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
    )


def create_backbone(
    name: str,
    image_size: int,
    drop_path: float = 0.0,
    *,
    pretrained: bool = False,
    overlay: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Make a timm model without its classifier. timm interpolates position embeddings to `image_size`.

    Args:
        name: timm model name.
        image_size: height and width, pixels.
        drop_path: the highest probability of stochastic depth.
        pretrained: load weights, by timm's rules from what `overlay` names, else from its hub.
        overlay: changes to timm's record about the weights.

    Raises:
        DataError: if timm cannot build this model.
    """
    cfg = pretrained_cfg(name)
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if cfg.fixed_input_size:
        options["img_size"] = image_size
    try:
        backbone: nn.Module = import_timm().create_model(
            name, pretrained=pretrained, num_classes=0, pretrained_cfg_overlay=dict(overlay or {}), **options
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise DataError(f"timm cannot build {name} with {options or 'its defaults'}: {error}") from error
    return backbone


def feature_layout(backbone: nn.Module, image_size: int) -> FeatureLayout:
    """Find out how to read a backbone by running it on torch's meta device, which computes shapes only.

    Parameters that do not reach the features (a norm or convolution that timm applies in its classifier) are frozen:
    they would never get a gradient, which is an error in distributed training.

    Raises:
        DataError: if the backbone returns neither a feature map nor tokens.
    """
    features, on_meta = _run_on_meta(backbone, lambda net, x: net.forward_features(x), image_size)
    if not isinstance(features, Tensor) or features.ndim not in {3, 4}:
        what = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"backbone {type(backbone).__name__} gives {what}; needed is a feature map or tokens")
    layout = _map_layout(backbone, features) if features.ndim == 4 else _token_layout(backbone, features)
    _freeze_unreached(backbone, on_meta, [layout.read(features)])
    return layout


def stage_channels(backbone: nn.Module, image_size: int, stages: int) -> tuple[list[int], tuple[int, int]]:
    """Find the channels of the last stages, finest first, and the middle one's grid, as in `feature_layout`."""
    maps, on_meta = _run_on_meta(backbone, lambda net, x: stage_maps(net, x, stages), image_size)
    _freeze_unreached(backbone, on_meta, maps)
    rows, columns = maps[len(maps) // 2].shape[-2:]
    return [m.shape[1] for m in maps], (rows, columns)


def stage_maps(backbone: nn.Module, x: Tensor, stages: int) -> list[Tensor]:
    """Compute the feature maps [(N, C_i, H_i, W_i)] of the last stages, finest first.

    Raises:
        DataError: if timm cannot give a backbone's stages.
    """
    if not hasattr(backbone, "forward_intermediates"):
        raise DataError(f"timm gives no stages of {type(backbone).__name__}: choose a ResNet, or one stage")
    maps: list[Tensor] = backbone.forward_intermediates(x, indices=stages, intermediates_only=True)  # type: ignore[operator]
    return maps


def _map_layout(backbone: nn.Module, features: Tensor) -> FeatureLayout:
    channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")
    axes = features.shape[1:]
    rows, columns, channels = axes if channels_last else (axes[1], axes[2], axes[0])
    return FeatureLayout(rows * columns, channels, (rows, columns), is_map=True, channels_last=channels_last)


def _token_layout(backbone: nn.Module, features: Tensor) -> FeatureLayout:
    count, channels = features.shape[1:]
    # Some models have a class token and do not say so; no square grid has a square + 1 places.
    extra = int(getattr(backbone, "num_prefix_tokens", 0)) or int(_side(count) is None and _side(count - 1) is not None)
    tokens = count - extra
    side = _side(tokens)
    grid = None if side is None else (side, side)
    return FeatureLayout(tokens, channels, grid, is_map=False, extra=extra)


def _side(tokens: int) -> int | None:
    side = math.isqrt(tokens)
    return side if side * side == tokens else None


class _Call(nn.Module):
    """A function of a backbone as a module, so that `functional_call` can swap its parameters."""

    def __init__(self, backbone: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.backbone = backbone
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.backbone, x)


def _run_on_meta(
    backbone: nn.Module, function: Callable[[Any, Tensor], Any], image_size: int
) -> tuple[Any, list[Tensor]]:
    """`function(backbone, image)` as shapes only, and the parameters on the meta device that it was made from."""
    call = _Call(backbone, function)
    parameters = {k: torch.empty_like(p, device="meta", requires_grad=True) for k, p in call.named_parameters()}
    buffers = {k: torch.empty_like(b, device="meta") for k, b in call.named_buffers()}
    image = torch.empty(2, 3, image_size, image_size, device="meta")
    was_training = backbone.training
    call.eval()
    with torch.enable_grad():
        result = torch.func.functional_call(call, {**parameters, **buffers}, (image,))
    backbone.train(was_training)
    return result, list(parameters.values())


def _freeze_unreached(backbone: nn.Module, on_meta: Sequence[Tensor], results: Sequence[Tensor]) -> None:
    with torch.enable_grad():
        total = torch.stack([r.sum() for r in results]).sum()
    total.backward(inputs=list(on_meta))  # type: ignore[no-untyped-call]
    for parameter, probe in zip(backbone.parameters(), on_meta, strict=True):
        if probe.grad is None:
            parameter.requires_grad_(False)
