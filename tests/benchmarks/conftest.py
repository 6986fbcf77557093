"""A tiny model and a few photographs to measure with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch import InputSpec, ModelContract
from mineral_batch.model.onnx_file import write_contract

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("agate", "gold", "quartz")
SIDE = 32


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ONNX model: mean color, one linear layer, sigmoid."""
    onnx = pytest.importorskip("onnx", reason="the tiny model is built with the onnx package")
    helper, kind = onnx.helper, onnx.TensorProto
    weights = np.random.default_rng(3).normal(0, 4, (3, len(LABELS))).astype(np.float32)
    constants = {"scale": np.float32(255), "half": np.float32(0.5), "weights": weights}
    constants |= {"axes": np.array([1, 2], np.int64)}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centered"]),
        helper.make_node("ReduceMean", ["centered", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SIDE, SIDE, 3])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", len(LABELS)])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    contract = ModelContract(LABELS, (0.5, 0.4, 0.6), InputSpec(height=SIDE, width=SIDE), name="tiny")
    write_contract(path, contract)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photographs of different colors and formats."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for index in range(12):
        color = rng.integers(0, 256, 3)
        pixels = np.clip(color + rng.normal(0, 10, (60, 80, 3)), 0, 255).astype(np.uint8)
        PILImage.fromarray(pixels).save(folder / f"{index:02}.{'png' if index % 3 else 'jpg'}")
    return folder
