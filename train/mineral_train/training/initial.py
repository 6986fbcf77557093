"""The weights a run begins with: a pretrained backbone, another run's checkpoint, or an exported ONNX file."""

from __future__ import annotations

from pathlib import Path

from mineral_batch.errors import DataError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_path
from mineral_batch.storage.models import fetch
from mineral_train.model.backbones import pretrained_cfg
from mineral_train.model.fetched import ONNX, fetch_model, require_no_secret
from mineral_train.model.network import MineralNet, build_model
from mineral_train.model.onnx_weights import load_onnx
from mineral_train.model.pretrained import require_hub_weights
from mineral_train.training import checkpoint
from mineral_train.training.config import STARTER, TrainConfig


def require_start(config: TrainConfig) -> None:
    """Check that the weights to begin with can be had, before anything slow.

    Raises:
        DataError: naming the file or the address that is missing.
    """
    _require_any_size(config)
    for name in ("init", "pretrained", "soft_targets"):
        require_no_secret(getattr(config, name), f"--{name.replace('_', '-')}")
    if config.init:
        if _onnx_file(config.init) is None:
            _require_labels(config.init, config.model.labels)
        else:
            _require_frozen_statistics(config)
            read_contract(_onnx_file(config.init) or "")
    elif config.pretrained == "hub":
        require_hub_weights(config.model.backbone)
    elif config.pretrained != "none" and not fetch(config.pretrained).is_file():
        raise DataError(f"no such weights file: {config.pretrained}")


def initial_model(config: TrainConfig, *, resumed: bool) -> MineralNet:
    """Build the model with the weights that the recipe names; random ones for a run whose state is restored next.

    Raises:
        DataError: if they cannot be had or do not fit.
    """
    if resumed or config.init or config.pretrained == "none":
        pretrained: bool | Path = False
    else:
        pretrained = True if config.pretrained == "hub" else fetch(config.pretrained)
    model = build_model(config.model, pretrained=pretrained, seed=config.seed)
    if config.init and not resumed:
        _start_from(model, config.init)
    return model


def start_in_words(config: TrainConfig, model: MineralNet) -> str:
    """Say which weights a run begins with."""
    return f"all weights from {Path(config.init).name}" if config.init else str(model.loaded)


def _require_any_size(config: TrainConfig) -> None:
    if config.train_size not in (0, config.model.image_size) and pretrained_cfg(config.model.backbone).fixed_input_size:
        raise DataError(
            f"train-size {config.train_size}: {config.model.backbone} takes images of one size only; leave it out, or "
            "choose a CNN"
        )


def _start_from(model: MineralNet, init: str) -> None:
    onnx_file = _onnx_file(init)
    if onnx_file is not None:
        load_onnx(model, onnx_file, read_contract(onnx_file).labels)
        return
    _require_labels(init, model.config.labels)
    folder = fetch_model(init)
    checkpoint.load_weights(model, checkpoint.read_tensors(folder / checkpoint.WEIGHTS)[0], folder)


def _onnx_file(init: str) -> Path | None:
    """The ONNX file that `--init` means, None for a checkpoint folder."""
    if init == STARTER and not Path(init).exists():
        return starter_path()
    model = fetch_model(init)
    return model if model.suffix == ONNX else None


def _require_labels(init: str, mine: tuple[str, ...]) -> None:
    labels = checkpoint.read_config(fetch_model(init))["model"].get("labels", [])
    if tuple(labels) != mine:
        raise DataError(
            f"the checkpoint {init} has {len(labels)} labels that are not the {len(mine)} of this run, or in another "
            "order: give the same --labels, or begin with its backbone only: "
            f"--pretrained {init.rstrip('/')}/{checkpoint.WEIGHTS}"
        )


def _require_frozen_statistics(config: TrainConfig) -> None:
    if not config.freeze_norm:
        raise DataError(
            "an exported file has its BatchNorm layers folded into the convolutions, so training from it keeps them "
            "still: add --freeze-norm, or begin from a checkpoint folder"
        )
