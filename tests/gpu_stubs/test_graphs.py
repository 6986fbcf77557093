"""Exported graphs in the real onnxruntime-gpu: every node on CUDA, one CUDA graph, and the counts after its fusions.

The counts are golden figures of one version: another one that fuses more or less is worth a look.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch.model.starter import starter_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Child

pytestmark = pytest.mark.gpu_stubs

VERSION = "1.31.1"
BATCH = 8
LABELS = ("quartz", "pyrite", "calcite")
#: Model -> how many nodes its optimized graph has: all, casts, attentions, and sums fused with a LayerNorm.
GOLDEN = {
    "starter": (148, 1, 0, 0),
    "starter-fp16": (157, 10, 0, 0),
    "vit": (245, 1, 0, 2),
    "vit-fp16": (261, 17, 0, 2),
    "vit-23": (161, 1, 6, 2),
    "vit-23-fp16": (165, 5, 6, 2),
    "vit-int8": (392, 17, 0, 2),
    "vit-maps": (459, 4, 0, 1),
}
_COUNTED = ("Cast", "Attention", "SkipLayerNormalization")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`model(name)`: `starter` or `vit`, perhaps with `-23` for opset 23 or `-maps`, perhaps in `-fp16` or `-int8`."""
    folder = tmp_path_factory.mktemp("models")

    @cache
    def make(name: str) -> Path:
        path = folder / f"{name}.onnx"
        source, _, last = name.rpartition("-")
        if name == "starter":
            return starter_path()
        if last == "fp16":
            from mineral_export.precision.fp16 import to_fp16

            to_fp16(make(source), path)
        elif last == "int8":
            from mineral_export.precision.int8 import to_int8

            images = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)
            to_int8(make(source), path, images, for_engine="tensorrt", force=True)
        else:
            _export(path, opset=23 if last == "23" else 20, explain="grad-cam" if last == "maps" else None)
        return path

    return make


def _export(path: Path, **options: Any) -> None:
    """The paper's model in small, with random weights."""
    from mineral_batch.model.contract import ModelContract
    from mineral_export.onnx.export import export_onnx
    from mineral_train.model.network import ModelConfig, build_model, input_spec

    config = ModelConfig("test_vit", image_size=64, width=32, heads=2, ffn=48, labels=LABELS)
    contract = ModelContract(LABELS, (0.5, 0.5, 0.5), input_spec(config), name="tiny")
    export_onnx(build_model(config, seed=1), contract, path, **options)


@pytest.mark.parametrize("name", GOLDEN)
def test_every_node_is_on_cuda_in_one_graph(
    child: Child, model: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    found = child("graph", str(model(name)), str(tmp_path / "optimized.onnx"), BATCH, True, False)
    assert "refused" not in found, found
    assert found["elsewhere"] == ""
    operators = found["operators"]
    assert not [kind for kind in operators if kind.startswith("Memcpy")]
    if child("facts")["version"] != VERSION:
        pytest.skip(f"the golden figures are those of {VERSION}")
    assert (found["nodes"], *(operators.get(kind, 0) for kind in _COUNTED)) == GOLDEN[name]


@pytest.mark.parametrize("tuning", [(False, False), (True, True)], ids=["not deterministic", "NHWC"])
@pytest.mark.parametrize("name", ["starter", "vit-fp16"])
def test_tuning_keeps_every_node_on_cuda(
    child: Child, model: Callable[[str], Path], tmp_path: Path, name: str, tuning: tuple[bool, bool]
) -> None:
    found = child("graph", str(model(name)), str(tmp_path / "optimized.onnx"), BATCH, *tuning)
    assert found.get("elsewhere") == "", found
    if tuning[1] and name == "starter":
        assert found["operators"]["Transpose"] == 3, "one is the model's: to channels last and back once"
