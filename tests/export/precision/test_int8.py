"""INT8: what the graph holds for each engine, which layers are measured as sensitive, and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from PIL import Image

from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import BackendError, ContractError, DataError
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import graph_digest, read_contract
from mineral_batch.model.starter import starter_path
from mineral_export.cli import main
from mineral_export.cli._options import echo_layers
from mineral_export.precision import int8 as int8_room
from mineral_export.precision.calibration import MIN_CALIBRATION
from mineral_export.precision.int8 import to_int8
from mineral_export.precision.qdq import quantized_layers
from mineral_export.precision.quantize import Quantized
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.convert import ExportedFile
from mineral_export.verify.parity import Parity, ParityError
from mineral_export.verify.samples import synthetic_images

from .graphs import pair

VARIANTS = {
    "cnn": {"backbone": "test_efficientnet", "method": "pool"},
    "vit, decoder": {"projection": "linear"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def source(request, exported):
    return exported(**VARIANTS[request.param]).path


@pytest.fixture(scope="module")
def cnn(exported):
    return exported(**VARIANTS["cnn"]).path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty images and one that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    for index in range(20):
        Image.effect_noise((64, 64), 60 + 5 * index).convert("RGB").save(folder / f"{index}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


# Precision of what is not quantized: a processor has no FP16.
REST = {"onnxruntime": "float32", "openvino": "float32", "tensorrt": "float16"}


@pytest.fixture(scope="module", params=REST)
def made(request, source, tmp_path_factory):
    pytest.importorskip("nncf", reason="nncf is not installed (extra int8)")
    target = tmp_path_factory.mktemp("made") / "int8.onnx"
    seen = []
    calibration = synthetic_images(read_contract(source).input, MIN_CALIBRATION)
    result = to_int8(
        source, target, calibration, for_engine=request.param, progress=lambda *step: seen.append(step), force=True
    )
    return request.param, target, result, seen


def pairs(graph):
    """DequantizeLinear nodes of stored weights, and those of activations, with their constants."""
    constants = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    return constants, [n for n in nodes if n.input[0] in constants], [n for n in nodes if n.input[0] not in constants]


@pytest.mark.slow
def test_the_file_is_quantized_weights_per_channel_in_eight_bits(source, made):
    _, target, result, _ = made
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    layers = quantized_layers(model)
    assert len(layers) == result.rounded
    assert result.rounded > 0.6 * result.layers
    constants, weights, activations = pairs(model.graph)
    assert len(activations) >= 0.5 * len(layers)
    wide = [node for node in weights if constants[node.input[0]].ndim > 1]
    assert wide
    for node in wide:
        scale, values = constants[node.input[1]], constants[node.input[0]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        assert values.dtype == np.int8
        assert scale.shape == (values.shape[axis],), "one scale for each output channel"
    assert not any(constants[node.input[0]].dtype == np.int32 for node in weights), "a bias is rounded"
    assert target.stat().st_size < 0.65 * source.stat().st_size


@pytest.mark.slow
def test_each_engine_gets_the_zero_points_that_it_takes(made):
    engine, target, _, _ = made
    constants, _, activations = pairs(onnx.load(target).graph)
    zeros = [constants[node.input[2]] for node in activations]
    if engine == "tensorrt":
        assert all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    else:
        assert any(zero.any() for zero in zeros), "nothing is asymmetric"
    if engine == "onnxruntime":
        assert all(zero.dtype == np.uint8 for zero in zeros), "computed in float32 where input and output differ"


@pytest.mark.slow
def test_the_answers_hold_and_the_file_says_how_it_was_made(source, made):
    engine, target, result, _ = made
    assert 0 < result.exported.parity.largest < 0.2
    before, after = read_contract(source), read_contract(target)
    assert (after.labels, after.thresholds, after.input) == (before.labels, before.thresholds, before.input)
    assert after.provenance == {
        **before.provenance,
        "source_sha256": graph_digest(source),
        "quantized_for": engine,
        "calibration_pictures": MIN_CALIBRATION,
        "kept_layers": [],
    }
    assert after.numerics == Numerics("int8", REST[engine])
    with open_artifact(target) as artifact:
        assert artifact.precision == "int8"


@pytest.mark.slow
def test_openvino_refuses_activations_that_are_scaled_per_channel(source, made):
    """Such as SmoothQuant leaves in a transformer: its answers would be wrong, and no message would say so."""
    engine, target, _, _ = made
    is_transformer = any(node.op_type == "LayerNormalization" for node in onnx.load(source).graph.node)
    if not is_transformer or engine == "openvino":
        open_backend(target, "openvino", precision="float32").close()
        return
    with pytest.raises(BackendError, match=r"OpenVINO computes int8\.onnx wrongly.*--target openvino"):
        open_backend(target, "openvino", precision="float32")


@pytest.mark.slow
def test_the_rest_is_of_the_precision_that_the_engine_is_fast_in(made):
    """Both factors of every product, quantized or not, and what lies between two of them."""
    engine, target, result, _ = made
    model = onnx.shape_inference.infer_shapes(onnx.load(target), strict_mode=True)
    assert result.rest == REST[engine]
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {weight.name: weight.data_type for weight in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    wanted = TensorProto.FLOAT16 if engine == "tensorrt" else TensorProto.FLOAT
    assert {types[name] for node in products for name in node.input} == {wanted}


@pytest.mark.slow
def test_onnx_runtime_computes_what_a_file_with_fp16_says(tmp_path):
    """Its rewrites of pairs beside FP16 round biases in steps of two scales multiplied, for which FP16 is too small."""
    pytest.importorskip("nncf", reason="nncf is not installed (extra int8)")
    target, pixels = tmp_path / "int8.onnx", synthetic_images(read_contract(starter_path()).input, MIN_CALIBRATION)
    to_int8(starter_path(), target, pixels, for_engine="tensorrt", force=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    (expected,) = plain.run(["probabilities"], {"pixels": pixels})
    with open_artifact(target) as artifact:
        assert np.abs(artifact.predict(pixels) - expected).mean() < 0.02


@pytest.mark.slow
def test_each_pass_over_the_pictures_is_told(made):
    seen = made[3]
    steps = [step for phase, step, steps in seen if phase == "calibration" and steps == MIN_CALIBRATION]
    once = [*range(MIN_CALIBRATION)]
    assert steps in (once, once + once)
    assert seen[-1] == (f"comparing, attempt 1 of at most 5, 0 layers in {REST[made[0]]}", 8, 0)


@pytest.mark.slow
def test_tensorrt_builds_its_file(source, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed (extra int8)")
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from mineral_batch.engines.tensorrt.options import Options
    from mineral_batch.engines.tensorrt.plan import Profile
    from mineral_export.tensorrt import export_engine

    target = tmp_path / "int8.onnx"
    to_int8(
        source,
        target,
        synthetic_images(read_contract(source).input, MIN_CALIBRATION),
        for_engine="tensorrt",
        force=True,
    )
    options = Options(Profile(2, 2, 2), ("8.9",))
    made = export_engine(target, tmp_path / "m.plan", options, precision="as-is", runtime="tensorrt-rtx")
    assert made.record.layers.get("int8", 0) > 3, made.record.layers


def rounded(model, layers):
    """The model itself with pairs before both factors of these layers, given with the steps of the two."""
    for node, step, fine in layers:
        inputs, more = pair(node.input[0], f"d:{node.name}", step)
        weights, channels = pair(node.input[1], f"dw:{node.name}", fine)
        node.input[0], node.input[1] = f"d:{node.name}", f"dw:{node.name}"
        at = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
        for new in reversed([*inputs, *weights]):
            model.graph.node.insert(at, new)
        model.graph.initializer.extend([*more, *channels])
    return model


@pytest.fixture
def coarse(monkeypatch):
    """A quantizer without calibration: the last matrix layer to steps of 1, far too coarse, the first to fine ones."""

    def quantize(model, calibration, count, target):
        result = onnx.ModelProto()
        result.CopyFrom(model)
        constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
        layers = [n for n in result.graph.node if n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in constants]
        finest = float(np.abs(constants[layers[0].input[1]]).max()) / 127
        return rounded(result, [(layers[0], 0.03, finest), (layers[-1], 8.0, 8.0)])

    monkeypatch.setattr(int8_room, "quantize_by_nncf", quantize)


def test_the_most_sensitive_layer_is_found_and_left_in_float32(cnn, tmp_path, coarse):
    target = tmp_path / "int8.onnx"
    result = to_int8(
        cnn,
        target,
        synthetic_images(read_contract(cnn).input, MIN_CALIBRATION),
        budget=replace(BUDGETS["int8"], largest=0.004),
    )
    last = [n.name for n in onnx.load(cnn).graph.node if n.op_type in ("Conv", "MatMul", "Gemm")][-1]
    assert result.kept == (last,)
    assert result.rounded == 1
    assert max(result.errors, key=result.errors.get) == last
    assert read_contract(target).provenance["kept_layers"] == [last]
    assert last not in quantized_layers(onnx.load(target))


def test_beyond_the_budget_nothing_is_written_and_the_figures_are_named(cnn, tmp_path, coarse):
    target, pictures = tmp_path / "int8.onnx", synthetic_images(read_contract(cnn).input, MIN_CALIBRATION)
    none = replace(BUDGETS["int8"], largest=0.0, mean=0.0, changed=0.0)
    with pytest.raises(
        ParityError, match=r"nothing was written: largest difference .* none up to the 1 most sensitive"
    ):
        to_int8(cnn, target, pictures, budget=none)
    assert not list(tmp_path.iterdir())
    result = to_int8(cnn, target, pictures, budget=none, force=True)
    assert (result.kept, result.rounded) == ((), 2)
    assert target.exists()


def test_what_is_not_float32_is_refused_in_one_line(cnn, tmp_path, coarse):
    pictures = synthetic_images(read_contract(cnn).input, MIN_CALIBRATION)
    to_int8(cnn, tmp_path / "int8.onnx", pictures, force=True)
    with pytest.raises(DataError, match="quantized already: use the float32 file"):
        to_int8(tmp_path / "int8.onnx", tmp_path / "again.onnx", pictures)
    half = onnx.load(cnn)
    half.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "half"))
    onnx.save(half, tmp_path / "half.onnx")
    with pytest.raises(DataError, match="FP16: use the float32 file"):
        to_int8(tmp_path / "half.onnx", tmp_path / "again.onnx", pictures)
    with pytest.raises(ContractError, match="there is no model file"):
        to_int8(tmp_path / "none.onnx", tmp_path / "again.onnx", pictures)
    assert not (tmp_path / "again.onnx").exists()


def quantize_command(model, photos, target, *more):
    arguments = ["int8", model, "--calibrate", photos, "-o", target, *more]
    return CliRunner().invoke(main, [str(word) for word in arguments])


def test_the_command_compares_on_photographs_held_out_of_calibration(cnn, tmp_path, photos, coarse):
    target = tmp_path / "int8.onnx"
    done = quantize_command(cnn, photos, target, "--force")
    assert done.exit_code == 0, done.output
    assert f"Calibrating with 17 photographs of {photos}; 3 others are held out to compare on" in done.output
    assert f"of 3 photographs of {photos}, held out of calibration" in done.output
    layers = sum(node.op_type in ("Conv", "MatMul", "Gemm") for node in onnx.load(cnn).graph.node)
    assert f"2 of {layers} layers in INT8" in done.output
    assert read_contract(target).provenance["calibration_pictures"] == 17


def test_photographs_that_are_named_are_compared_on_instead(cnn, tmp_path, photos, coarse):
    target = tmp_path / "int8.onnx"
    done = quantize_command(cnn, photos, target, "--photos", photos / "0.png", "--force")
    assert done.exit_code == 0, done.output
    assert f"of 1 photographs of {photos / '0.png'}" in done.output
    assert read_contract(target).provenance["calibration_pictures"] == 20


def test_a_place_that_cannot_be_written_to_is_said_before_anything_is_quantized(cnn, tmp_path, photos, monkeypatch):
    monkeypatch.setattr(int8_room, "quantize_by_nncf", lambda *_: pytest.fail("quantized"))
    (tmp_path / "folder").mkdir()
    for target, message in (
        ("folder", "folder is a folder: name a file with -o, such as"),
        ("no/int8.onnx", "no such folder"),
        ("x" * 300, "File name too long; choose another place with -o"),
    ):
        arguments = ["int8", str(cnn), "--calibrate", str(photos), "--quiet", "-o", str(tmp_path / target)]
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 1, done.output
        (line,) = done.output.splitlines()
        assert message in line
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize("count", [0, 1, 15, 17])
def test_too_few_photographs_to_calibrate_with_are_refused(cnn, tmp_path, photos, count, coarse):
    """INT8 of one photograph would pass on synthetic images and fail on real ones."""
    (tmp_path / "photos").mkdir()
    for name in ["broken.jpg", *(f"{index}.png" for index in range(count))]:
        (tmp_path / "photos" / name).write_bytes((photos / name).read_bytes())
    done = quantize_command(cnn, tmp_path / "photos", tmp_path / "int8.onnx", "--force")
    assert done.exit_code == 1
    assert "readable photographs to calibrate with" in done.output
    assert "needs at least 16" in done.output.replace("\n", " ")
    assert not (tmp_path / "int8.onnx").exists()


def test_without_nncf_one_line_says_what_to_install(cnn, tmp_path, photos, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    target = tmp_path / "int8.onnx"
    done = CliRunner().invoke(main, ["int8", str(cnn), "--calibrate", str(photos), "-o", str(target)])
    assert done.exit_code == 1
    assert "[int8]'" in done.output
    assert not target.exists()


def test_all_layers_leave_no_rest(capsys):
    parity = Parity(0.1, 0.01, 8, "photographs")
    whole = Quantized(ExportedFile(Path("m.onnx"), 1, parity), 64, 64, (), "float32", {})
    echo_layers(whole, "INT8")
    echo_layers(replace(whole, rounded=60), "INT8")
    assert capsys.readouterr().out.splitlines() == [
        "64 of 64 layers in INT8",
        "60 of 64 layers in INT8, the rest in float32",
    ]
