"""Tiny models, timm's test networks, and their exports, each made once for all tests: an export takes seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch

from mineral_batch.model.contract import ModelContract
from mineral_export.onnx.defaults import OPSET
from mineral_export.onnx.export import export_onnx
from mineral_train.model.network import MineralNet, ModelConfig, build_model, input_spec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LABELS = ("quartz", "pyrite, cubic", "Рубин")


class Exported(NamedTuple):
    """An export that tests share: they change neither the model nor the file."""

    model: MineralNet
    contract: ModelContract
    path: Path


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., tuple[MineralNet, ModelContract]]:
    """A model with random weights and its contract: `tiny(backbone=..., method=..., projection=...)`."""

    def make(backbone: str = "test_vit", **options: Any) -> tuple[MineralNet, ModelContract]:
        sizes = {"image_size": 64, "width": 32, "heads": 2, "ffn": 48, "labels": LABELS}
        config = ModelConfig(backbone, **(sizes | options))
        model = build_model(config, seed=1)
        with torch.no_grad():  # at initialization every probability is near 0.5, and parity would prove little
            for parameter in model.head.parameters():
                parameter.mul_(8)
        contract = ModelContract(LABELS, (0.3, 0.5, 0.7), input_spec(config), name="tiny", license="MIT")
        return model, contract

    return make


@pytest.fixture(scope="session")
def exported(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """The ONNX file of a tiny model: `exported(opset=..., **options of tiny)`."""
    known: dict[str, Exported] = {}

    def export(opset: int = OPSET, **options: Any) -> Exported:
        key = repr((opset, sorted(options.items())))
        if key not in known:
            model, contract = tiny(**options)
            path = tmp_path_factory.mktemp("exported") / "model.onnx"
            export_onnx(model, contract, path, opset=opset)
            known[key] = Exported(model, contract, path)
        return known[key]

    return export
