"""Every graph that is deployed becomes an FP16 engine."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from mineral_batch.engines.tensorrt.plan import Profile, read_record
from mineral_batch.minerals import MINERALS
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import graph_digest, read_contract
from mineral_batch.model.starter import starter_path
from mineral_export.onnx.export import export_onnx
from mineral_export.verify.samples import Samples, synthetic_images
from mineral_train.model.network import build_model, input_spec, preset

from .graphs import (
    TWO_CHIPS,
    products,
    run,
)

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


def _starter(folder: Path) -> Path:
    return shutil.copy(starter_path(), folder / "model.onnx")


def _mobilenet(folder: Path) -> Path:
    """The preset with a smaller picture and decoder: exported in seconds."""
    config = preset("mobilenet-v2", image_size=64, width=64, heads=2, ffn=96)
    contract = ModelContract(MINERALS, (0.5,) * 36, input_spec(config), name="mobilenet-v2, random weights")
    return export_onnx(build_model(config, seed=0), contract, folder / "model.onnx").path


def _paper(folder: Path) -> Path:
    """The paper's model, all of it: 121 GFLOP a picture, so it is compared with torch on one."""
    config = preset("vit-b16-384")
    contract = ModelContract(MINERALS, (0.5,) * 36, input_spec(config), name="vit-b16-384, random weights")
    samples = Samples.of(synthetic_images(contract.input, 1), "one synthetic image")
    return export_onnx(build_model(config, seed=0), contract, folder / "model.onnx", samples=samples, force=True).path


@pytest.fixture(scope="module")
def small_paper(exported: Any) -> Path:
    """The paper's model with a small ViT: ViT, reshape projection, one decoder block, flatten head."""
    path: Path = exported(projection="reshape").path
    return path


@pytest.fixture(params=["starter", "mobilenet-v2", "the paper's model, small", "attention as one operator"])
def graph(request: pytest.FixtureRequest, tmp_path: Path, tiny: Any) -> Path:
    if request.param == "starter":
        return _starter(tmp_path)
    if request.param == "mobilenet-v2":
        return _mobilenet(tmp_path)
    if request.param == "attention as one operator":
        return export_onnx(*tiny(projection="reshape"), tmp_path / "model.onnx", opset=23).path
    return shutil.copy(request.getfixturevalue("small_paper"), tmp_path / "model.onnx")


@pytest.mark.slow
def test_each_deployed_graph_becomes_an_fp16_engine_for_two_chips(graph: Path) -> None:
    require_fp16_engine(graph)


def require_fp16_engine(graph: Path) -> None:
    contract, plan = read_contract(graph), graph.with_name("model.plan")
    height, width, _ = contract.input.shape
    result = run(graph, *TWO_CHIPS, "--min", 1, "--opt", 8, "--max", 32)
    assert result.exit_code == 0, result.output
    record = read_record(plan)
    assert record.precision == "float16"
    assert record.products == {"float16": products(graph)}, "every matrix product of the graph, and none in float32"
    assert record.layers["float16"] > record.layers["float32"] > 0, "softmax and sigmoid stay in float32"
    assert record.layers_from == "typed network"
    assert record.inputs == {"pixels": f"uint8 (-1, {height}, {width}, 3)"}
    assert record.outputs == {"probabilities": f"float32 (-1, {len(contract.labels)})"}
    assert record.profile == Profile(1, 8, 32)
    assert record.compute_capabilities == ("8.9", "12.0")
    assert (record.runtime, record.version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert (record.gpu, record.cuda) == ("", ""), "built without one"
    assert (record.source, record.onnx_sha256) == ("model.onnx", graph_digest(graph))
    assert record.engine_sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    unlike: dict[str, Any] = {"provenance": {}, "measured": None, "numerics": contract.numerics}
    assert replace(record.contract, **unlike) == replace(contract, **unlike)
    assert record.contract.numerics.precision == "float16"
    assert f"convolutions and matrix products: {products(graph)} float16" in result.output
    assert "compute capability 8.9, 12.0, batch 1 / 8 / 32" in result.output


@pytest.mark.slow
def test_the_papers_model_whole(tmp_path: Path) -> None:
    """A minute of one core."""
    with TemporaryDirectory(dir=tmp_path) as folder:  # 1.3 GB, not to be kept with pytest's other folders
        require_fp16_engine(_paper(Path(folder)))
