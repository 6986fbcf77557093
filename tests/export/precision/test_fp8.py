"""FP8: what ModelOpt is asked for, what the file holds, and that the engine that compares it computes it as written."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from mineral_batch.errors import DataError
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract, write_contract
from mineral_export.cli import main
from mineral_export.precision.calibration import MIN_CALIBRATION
from mineral_export.precision.fp8 import to_fp8
from mineral_export.precision.qdq import quantized_layers
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.parity import ParityError
from mineral_export.verify.samples import synthetic_images

FLOAT8 = TensorProto.FLOAT8E4M3FN


@pytest.fixture(scope="module")
def source(exported):
    """A ViT with a decoder, which has a Relu."""
    return exported(projection="linear").path


def add_pair(graph, name, step):
    """Nodes that round the tensor to FP8 in units of `step`; returns what they give."""
    made = f"{name}:{len(graph.node)}"
    graph.initializer.append(helper.make_tensor(f"{made}:s", TensorProto.FLOAT, [], [step]))
    graph.initializer.append(helper.make_tensor(f"{made}:z", FLOAT8, [], [0.0]))
    producers = [i for i, node in enumerate(graph.node) if name in node.output]
    at = producers[0] + 1 if producers else 0
    graph.node.insert(at, helper.make_node("QuantizeLinear", [name, f"{made}:s", f"{made}:z"], [f"{made}:q"]))
    graph.node.insert(at + 1, helper.make_node("DequantizeLinear", [f"{made}:q", f"{made}:s", f"{made}:z"], [made]))
    return made


def rounded(model):
    """The model with both factors of each layer that has a weight behind a pair, but the first layer's."""
    weights = {w.name for w in model.graph.initializer}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in weights]
    for node in layers[1:]:
        node.input[0] = add_pair(model.graph, node.input[0], 1 / 64)
        node.input[1] = add_pair(model.graph, node.input[1], 1 / 1024)
    return model


@pytest.fixture
def modelopt(monkeypatch):
    """A stand-in that rounds without calibration and remembers how it was called."""
    calls = []

    def quantize(path, *, output_path, **options):
        calls.append(options)
        onnx.save(rounded(onnx.load(path)), output_path)

    module = ModuleType("modelopt.onnx.quantization")
    module.quantize = quantize
    monkeypatch.setitem(sys.modules, "modelopt", ModuleType("modelopt"))
    monkeypatch.setitem(sys.modules, "modelopt.onnx", ModuleType("modelopt.onnx"))
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", module)
    return calls


def holds_float8(target):
    """Weights stored in FP8, activations rounded to it, uint8 pictures in and float32 probabilities out."""
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    stored = {w.name: w for w in graph.initializer}
    pairs = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert {stored[node.input[2]].data_type for node in pairs} == {FLOAT8}
    weights = [stored[node.input[0]] for node in pairs if node.input[0] in stored]
    assert weights
    assert {weight.data_type for weight in weights} == {FLOAT8}
    return quantized_layers(model)


def test_the_file_holds_fp8_and_says_so(source, tmp_path, modelopt):
    target = tmp_path / "fp8.onnx"
    result = to_fp8(source, target, synthetic_images(read_contract(source).input, MIN_CALIBRATION), force=True)
    layers = holds_float8(target)
    assert 0 < len(layers) == result.rounded < result.layers
    assert result.exported.parity.largest > 0
    before, after = read_contract(source), read_contract(target)
    assert (after.labels, after.thresholds, after.input) == (before.labels, before.thresholds, before.input)
    assert after.provenance == {
        **before.provenance,
        "source_sha256": graph_digest(source),
        "calibration_pictures": MIN_CALIBRATION,
        "kept_layers": [],
    }
    assert after.numerics == Numerics("float8", "float16")
    with open_artifact(target) as artifact:
        assert artifact.precision == "float8"


def test_modelopt_is_given_the_pictures_and_works_without_a_gpu(source, tmp_path, modelopt):
    pictures = synthetic_images(read_contract(source).input, MIN_CALIBRATION)
    to_fp8(source, tmp_path / "fp8.onnx", pictures, force=True)
    (options,) = modelopt
    assert options["quantize_mode"] == "fp8"
    assert options["calibration_eps"] == ["cpu"]
    assert np.array_equal(options["calibration_data"]["pixels"], pictures)


def test_beyond_the_budget_nothing_is_written_unless_told(source, tmp_path, modelopt):
    target, pictures = tmp_path / "fp8.onnx", synthetic_images(read_contract(source).input, MIN_CALIBRATION)
    none = replace(BUDGETS["float8"], largest=0.0, mean=0.0, changed=0.0)
    with pytest.raises(ParityError, match=r"nothing was written: largest difference .* most sensitive of \d+ layers"):
        to_fp8(source, target, pictures, budget=none)
    assert not list(tmp_path.iterdir())
    to_fp8(source, target, pictures, budget=none, force=True)
    assert read_contract(target).numerics.precision == "float8"


@pytest.mark.parametrize("between", ["Relu", "Clip"])
def test_onnx_runtime_keeps_what_stands_before_a_rounding_to_fp8(source, tmp_path, between):
    """Its rewrites for integers would drop the Relu, and the probabilities with it, and refuse the Clip."""
    model = onnx.load(source)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    if between == "Clip":
        model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [], [0.0]))
        model.graph.initializer.append(helper.make_tensor("six", TensorProto.FLOAT, [], [6.0]))
        relu.op_type = "Clip"
        relu.input.extend(["zero", "six"])
    reader = next(node for node in model.graph.node if relu.output[0] in node.input)
    reader.input[0] = add_pair(model.graph, relu.output[0], 1 / 64)
    path = tmp_path / "fp8.onnx"
    onnx.save(model, path)
    write_contract(path, replace(read_contract(source), numerics=Numerics("float8")))
    pixels = synthetic_images(read_contract(source).input, 3)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (expected,) = plain.run(None, {"pixels": pixels})
    with open_artifact(path) as artifact:
        assert artifact.predict(pixels) == pytest.approx(expected, abs=1e-4)


def test_an_opset_without_fp8_is_refused(source, tmp_path, modelopt):
    model = onnx.load(source)
    next(entry for entry in model.opset_import if not entry.domain).version = 18
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(DataError, match="has opset 18; 8 bits beside FP16 need opset 19: export it"):
        to_fp8(
            tmp_path / "old.onnx", tmp_path / "fp8.onnx", synthetic_images(read_contract(source).input, MIN_CALIBRATION)
        )


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for index in range(20):
        Image.effect_noise((64, 64), 60 + 5 * index).convert("RGB").save(tmp_path / "photos" / f"{index}.png")
    return tmp_path / "photos"


def test_the_command(source, tmp_path, photos, modelopt):
    target = tmp_path / "fp8.onnx"
    done = CliRunner().invoke(
        main, ["fp8", str(source), "--calibrate", str(photos), "-o", str(target), "--count", "2", "--force"]
    )
    assert done.exit_code == 0, done.output
    assert "Calibrating with 16 photographs" in done.output
    assert " of 2 photographs of" in done.output
    assert f"{len(holds_float8(target))} of " in done.output
    assert "layers in FP8" in done.output


def test_without_modelopt_one_line_says_what_to_install(source, tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "modelopt", None)
    target = tmp_path / "fp8.onnx"
    done = CliRunner().invoke(main, ["fp8", str(source), "--calibrate", str(photos), "-o", str(target)])
    assert done.exit_code == 1
    assert 'pip install "nvidia-modelopt[onnx]" in an environment of its own' in done.output
    assert done.output.count("Error:") == 1
    assert not target.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_modelopt_itself(source, tmp_path):
    pytest.importorskip("modelopt.onnx.quantization", reason="NVIDIA ModelOpt is not installed")
    target = tmp_path / "fp8.onnx"
    result = to_fp8(source, target, synthetic_images(read_contract(source).input, MIN_CALIBRATION), force=True)
    assert len(holds_float8(target)) == result.rounded > 0.6 * result.layers
    assert 0 < result.exported.parity.largest < 0.2
