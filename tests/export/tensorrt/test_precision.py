"""The precision of an engine is read back, not believed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto
from PIL import Image as PILImage

from mineral_batch.engines.tensorrt import build as tensorrt_build
from mineral_batch.engines.tensorrt.layers import Layers
from mineral_batch.engines.tensorrt.options import Options
from mineral_batch.engines.tensorrt.plan import Profile
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract, write_contract
from mineral_export.cli import main
from mineral_export.precision.fp16 import converted
from mineral_export.tensorrt import export_engine
from mineral_export.verify.budget import BUDGETS

from .graphs import (
    LABELS,
    ONE_CHIP,
    SIDE,
    built,
    nothing_but_the_model,
    products,
    refused,
    write_product,
)

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


def test_a_float32_graph_is_converted_or_taken_as_it_is(product: Path, plan: Path) -> None:
    assert built(product, "-o", plan, *ONE_CHIP).precision == "float16"
    for precision in ("fp32", "as-is"):
        record = built(product, "-o", plan, *ONE_CHIP, "--precision", precision)
        assert (record.precision, record.products) == ("float32", {"float32": 1})


def test_a_typed_fp16_graph_is_not_converted_again(product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = product.with_name("half.onnx")
    assert CliRunner().invoke(main, ["fp16", str(product), "-o", str(half)]).exit_code == 0
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)
    record = built(half, "-o", plan, *ONE_CHIP)
    assert (record.precision, record.source, record.onnx_sha256) == ("float16", "half.onnx", graph_digest(half))
    assert "the engine should be fp32, and its matrix products are 1 in float16" in refused(
        half, *ONE_CHIP, "--precision", "fp32"
    )


def test_an_engine_asked_to_be_fp16_that_is_not_is_refused(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that leaves everything in float32 and says it is FP16."""

    def lazy(source: Path, target: Path, **_: Any) -> Any:
        shutil.copy(source, target)
        return type("Made", (), {"path": target})

    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", lazy)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: the engine should be fp16, and its matrix products are 1 in float32" in message
    assert "--precision as-is" in message
    assert sorted(path.name for path in plan.parent.iterdir()) == ["model.onnx"]


def test_one_product_in_another_precision_is_enough_to_refuse(tmp_path: Path, plan: Path) -> None:
    mixed = write_product(tmp_path, second=TensorProto.FLOAT16)
    message = refused(mixed, "-o", plan, *ONE_CHIP, "--precision", "fp32")
    assert "1 in float32, 1 in float16 (precision mixed)" in message
    record = built(mixed, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert (record.precision, record.products) == ("mixed", {"float32": 1, "float16": 1})


def test_a_quantized_graph_is_an_int8_engine(tmp_path: Path, plan: Path) -> None:
    """The types around a product with Q/DQ pairs are float32; TensorRT multiplies what was quantized."""
    model = write_product(tmp_path, quantized=True)
    write_contract(model, replace(read_contract(model), numerics=Numerics("int8")))
    record = built(model, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert (record.precision, record.products) == ("int8", {"int8": 1})
    assert "model.onnx is int8 already: build it with --precision as-is" in refused(model, *ONE_CHIP)


def test_the_counts_are_those_of_the_fp16_graph(product: Path, plan: Path) -> None:
    """Against the graph's own types, as ONNX infers them."""
    half = onnx.shape_inference.infer_shapes(converted(onnx.load(product)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    inputs = [types.get(node.input[0]) for node in half.graph.node if node.op_type == "MatMul"]
    assert built(product, "-o", plan, *ONE_CHIP).products == {"float16": inputs.count(TensorProto.FLOAT16)}


def test_an_engine_without_a_layer_of_fp16_is_refused(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the network says: the built engine's own layers are asked, where they can be."""
    read_back = Layers({"float16": 1}, {"float32": 4}, "engine")
    monkeypatch.setattr(tensorrt_build, "engine_layers", lambda *_: read_back)
    message = refused(product, "-o", plan, *ONE_CHIP)
    assert "nothing was written: the engine should be fp16, and its layers are 4 in float32" in message
    assert nothing_but_the_model(plan)


def test_the_conversion_to_fp16_keeps_to_what_the_user_asks(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU its comparison is the only one."""
    none = replace(BUDGETS["float16"], largest=0.0, mean=0.0, points=-1.0)
    monkeypatch.setitem(BUDGETS, "float16", none)
    assert "nothing was written: largest difference of a probability" in refused(product, "-o", plan, *ONE_CHIP)
    photos = plan.parent / "photos"
    photos.mkdir()
    PILImage.effect_noise((SIDE, SIDE), 80).convert("RGB").save(photos / "a.png")
    assert "over 1 photographs" in refused(product, "-o", plan, *ONE_CHIP, "--photos", photos)
    (photos / "labels.csv").write_text(f"path,labels\na.png,{LABELS[0]}\n", "utf-8")
    labeled = (product, "-o", plan, *ONE_CHIP, "--labels", photos / "labels.csv")
    assert "mAP lost, in points, 0 exceeds -1" in refused(*labeled)
    assert built(*labeled, "--points", 1).precision == "float16"
    assert built(product, "-o", plan, *ONE_CHIP, "--force").precision == "float16"


@pytest.mark.slow
def test_attention_as_one_operator_is_built_in_float32_too(tmp_path: Path, plan: Path, exported: Any) -> None:
    """There is no kernel for all of it."""
    model = shutil.copy(exported(projection="linear", opset=23).path, tmp_path / "model.onnx")
    record = built(model, "-o", plan, *ONE_CHIP, "--precision", "fp32", "--batch", 2)
    assert record.products == {"float32": products(model)}


@pytest.mark.parametrize("allowed", [False, True])
def test_float32_is_tf32_only_where_that_is_allowed(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    """TensorRT allows it without being asked: 10 bits of mantissa under the name of 23."""
    flags: list[bool] = []
    original = tensorrt_build.Network._configured

    def configured(self: Any, *given: Any) -> Any:
        config, kept = original(self, *given)
        flags.append(config.get_flag(tensorrt_rtx.BuilderFlag.TF32))
        return config, kept

    monkeypatch.setattr(tensorrt_build.Network, "_configured", configured)
    options = Options(Profile(1, 2, 2), ("8.9",), tf32=allowed)
    record = export_engine(product, plan, options, precision="fp32").record
    assert flags == [allowed]
    assert record.precision == ("TF32 allowed" if allowed else "float32")
