"""How long another recipe would take here, measured with a few steps on random images."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from mineral_train.model.network import build_model
from mineral_train.training.config import TrainConfig
from mineral_train.training.losses import make_loss
from mineral_train.training.optim import freeze_stages, train_what_learns
from mineral_train.training.recipes import FEW, STARTER_MODEL
from mineral_train.training.reporter import duration

_IMAGES = 8


def suggest_few(config: TrainConfig, images: int, device: torch.device) -> str:
    """Say how long `--recipe few` would take for so many images; empty if the run uses its model already.

    Args:
        config: of the run.
        images: in the training split.
        device: where it runs.
    """
    if config.model.backbone == STARTER_MODEL.backbone:
        return "; fewer --epochs take less"
    seconds = _seconds_per_image(config, device) * images * int(FEW["epochs"])
    return f"; --recipe few would take {duration(seconds)}"


def _seconds_per_image(config: TrainConfig, device: torch.device) -> float:
    """Measure the second step; the first one is slower."""
    model = build_model(replace(STARTER_MODEL, labels=config.model.labels), seed=0).to(device)
    freeze_stages(model.backbone, int(FEW["freeze_stages"]))
    train_what_learns(model)
    size = STARTER_MODEL.image_size
    images = torch.zeros(_IMAGES, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(_IMAGES, len(config.model.labels), device=device)
    for _ in range(2):
        start = time.perf_counter()
        float(_step(model, images, targets))
    return (time.perf_counter() - start) / _IMAGES


def _step(model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = make_loss("asymmetric")(model(images), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()
