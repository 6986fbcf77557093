"""The optimizer: parameter groups, learning rate schedule, frozen layers, moving average of the weights."""

from __future__ import annotations

import importlib
import itertools
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mineral_batch.errors import MineralError
from mineral_train.model.backbones import import_timm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mineral_train.model.network import MineralNet
    from mineral_train.training.config import TrainConfig


LABEL_EMBEDDINGS = "decoder.labels"


def make_optimizer(model: MineralNet, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW over all parameters that can learn; call it before any is frozen for a while.

    Raises:
        MineralError: if layer-wise decay is wanted and the backbone does not declare its layers.
    """
    groups = [*_backbone_groups(model.backbone, config), *_head_groups(model, config)]
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def add_layer(optimizer: torch.optim.Optimizer, layer: nn.Module, config: TrainConfig) -> None:
    """Let the optimizer also train a layer beside the model, as it trains what comes after the backbone."""
    for group in _decay_groups(layer.named_parameters(), set(), config.weight_decay, config.head_lr):
        optimizer.add_param_group(group)


def _backbone_groups(backbone: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    if config.layer_decay == 1.0:
        return _decay_groups(backbone.named_parameters(), _undecayed(backbone), config.weight_decay, 1.0)
    if not hasattr(backbone, "group_matcher"):
        raise MineralError(f"timm does not declare the layers of {config.model.backbone}: leave out --layer-decay")
    import_timm()
    timm_optim = importlib.import_module("timm.optim")
    groups: list[dict[str, Any]] = timm_optim.param_groups_layer_decay(
        backbone, config.weight_decay, _undecayed(backbone), layer_decay=config.layer_decay
    )
    return groups


def _head_groups(model: MineralNet, config: TrainConfig) -> list[dict[str, Any]]:
    backbone = {id(parameter) for parameter in model.backbone.parameters()}
    rest = [(name, p) for name, p in model.named_parameters() if id(p) not in backbone]
    return _decay_groups(rest, _undecayed(model), config.weight_decay, config.head_lr)


def _decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], undecayed: set[str], weight_decay: float, lr_scale: float
) -> list[dict[str, Any]]:
    """Make two groups: matrices with weight decay; vectors (norms, biases) and `undecayed` without."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in named:
        if not parameter.requires_grad:  # no path to the features, see `backbones.feature_layout`
            continue
        groups[parameter.ndim > 1 and name not in undecayed].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decayed else 0.0, "lr_scale": lr_scale}
        for decayed, parameters in groups.items()
        if parameters
    ]


def _undecayed(module: nn.Module) -> set[str]:
    """List the embeddings: what the module itself declares (timm's convention) and `nn.Embedding` tables."""
    declared = module.no_weight_decay() if hasattr(module, "no_weight_decay") else set()  # type: ignore[operator]
    tables = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.Embedding)}
    return set(declared) | tables | {LABEL_EMBEDDINGS}


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Compute the factor of the peak learning rate in optimizer step `step` (from 0) of the run.

    A function of the step alone, so that a resumed run needs no state of it. Linear from 1 / warm-up steps to 1 over
    the warm-up, then 1 or half a cosine down to `min_lr` (Loshchilov & Hutter 2017, without restarts).
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
    return config.min_lr + (1 - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to `lr` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def freeze_stages(backbone: nn.Module, count: int) -> None:
    """Freeze a backbone's stem and its `count` lowest stages (a transformer's blocks) for the whole run.

    Raises:
        MineralError: if the backbone does not declare its stages, or has no more than `count`.
    """
    if not count:
        return
    if not hasattr(backbone, "group_matcher"):
        raise MineralError("timm does not declare the stages of this backbone: leave out --freeze-stages")
    import_timm()
    rules = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    grouped = importlib.import_module("timm.models").group_parameters(backbone, rules)
    stem, *stages = [names for _, names in sorted(grouped.items())]
    if count >= len(stages):
        raise MineralError(
            f"--freeze-stages {count} freezes all {len(stages)} stages of the backbone: use a smaller number"
        )
    for name in itertools.chain(stem, *stages[:count]):
        backbone.get_parameter(name).requires_grad_(False)


def train_what_learns(model: nn.Module) -> None:
    """Set training mode, but evaluation mode for each module with parameters of which none learns."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()


def freeze_statistics(module: nn.Module) -> None:
    """Set BatchNorm to evaluation mode: it normalizes with its running statistics and does not update them."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()


def make_ema(model: nn.Module, decay: float) -> Any | None:
    """Make timm's moving average of weights and buffers, warmed up to forget early weights; None for decay 0."""
    if not decay:
        return None
    import_timm()
    return importlib.import_module("timm.utils").ModelEmaV3(model, decay=decay, use_warmup=True)


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Name the optimizer's tensors `parameter name/key`, for a file without Python objects."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Restore what `named_state` returned, each tensor on its parameter's device and in its memory format."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, torch.Tensor]] = {}
    for index, parameter in enumerate(ordered):
        prefix = f"{names[id(parameter)]}/"
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if found:
            states[index] = {key: value if key == "step" else _like(value, parameter) for key, value in found.items()}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """Lay out `value` as the optimizer lays out its own: other strides can round differently."""
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
