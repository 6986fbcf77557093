"""A typed FP16 graph: what is FP16, what is not, and the same answers."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mineral_batch.errors import DataError
from mineral_batch.model.onnx_file import graph_digest, read_contract
from mineral_export.cli import main
from mineral_export.precision.fp16 import FLOAT32_OPERATORS, converted, to_fp16
from mineral_export.precision.qdq import packed
from mineral_export.verify.budget import BUDGETS
from mineral_export.verify.convert import convert_and_verify
from mineral_export.verify.parity import ParityError

VARIANTS = {
    "vit, decoder": {"projection": "linear"},
    "cnn, decoder": {"backbone": "test_efficientnet"},
}


@pytest.fixture(scope="module", params=VARIANTS)
def source(request, exported):
    return exported(**VARIANTS[request.param]).path


@pytest.fixture(scope="module")
def half(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("fp16") / "half.onnx"
    return target, to_fp16(source, target)


def types(path):
    """Tensor -> element type, by ONNX's own inference."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    graph = model.graph
    found = {w.name: w.data_type for w in graph.initializer}
    return model, found | {
        v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output, *graph.value_info]
    }


def test_the_answers_hold_and_the_file_is_half_as_big(source, half):
    target, exported = half
    assert exported.parity.beyond(BUDGETS["float16"]) == ()
    assert exported.parity.largest > 0, "the same graph"
    weights = sum(w.ByteSize() for w in onnx.load(source).graph.initializer)
    assert sum(w.ByteSize() for w in onnx.load(target).graph.initializer) < 0.6 * weights


def test_the_matrices_are_fp16_and_the_sensitive_operators_float32(half):
    model, found = types(half[0])
    onnx.checker.check_model(model, full_check=True)
    seen = Counter()
    for node in model.graph.node:
        kinds = {found[name] for name in (*node.input[:1], *node.output) if name in found}
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            seen["matrix"] += 1
            assert kinds == {TensorProto.FLOAT16}, node.name
        if node.op_type in FLOAT32_OPERATORS or node.output[0] == "probabilities":
            seen["sensitive"] += 1
            assert kinds == {TensorProto.FLOAT}, node.name
    assert seen["matrix"] > 3
    assert seen["sensitive"] > 0


def layer_norm_behind_a_product(**attributes):
    """(N, 2) -> MatMul -> LayerNormalization -> Sigmoid, whose values have squares beyond FP16."""
    nodes = [
        helper.make_node("MatMul", ["x", "m"], ["p"]),
        helper.make_node("LayerNormalization", ["p", "w", "b"], ["n"], **attributes),
        helper.make_node("Sigmoid", ["n"], ["y"]),
    ]
    return graph_of(nodes, {"m": [[3000.0, -1500.0], [500.0, 20000.0]], "w": [1.0, 2.0], "b": [0.1, 0.2]})


def test_a_layer_norm_takes_and_gives_fp16_and_computes_in_float32():
    """Between casts ONNX Runtime cannot fuse it with the sum before it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = layer_norm_behind_a_product()
    half = converted(model)
    onnx.checker.check_model(half, full_check=True)
    assert [node.op_type for node in half.graph.node] == ["Cast", "MatMul", "LayerNormalization", "Cast", "Sigmoid"]
    x = np.array([[1.0, 1.0], [-2.0, 0.5]], np.float32)
    answers = [
        onnxruntime.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for one in (model, half)
    ]
    np.testing.assert_allclose(answers[1], answers[0], atol=2e-3)


def test_a_layer_norm_that_would_compute_in_fp16_stays_float32():
    half = converted(layer_norm_behind_a_product(stash_type=TensorProto.FLOAT16))
    kinds = [node.op_type for node in half.graph.node]
    assert kinds == ["Cast", "MatMul", "Cast", "LayerNormalization", "Sigmoid"]


def test_pictures_go_in_and_float32_comes_out_normalized_in_float32(half):
    model, found = types(half[0])
    graph = model.graph
    assert found[graph.input[0].name] == TensorProto.UINT8
    assert found[graph.output[0].name] == TensorProto.FLOAT
    first_cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == graph.input[0].name)
    assert first_cast.attribute[0].i == TensorProto.FLOAT
    assert {found[node.output[0]] for node in graph.node if node.op_type == "Sub"} >= {TensorProto.FLOAT}


def test_no_tensor_is_cast_twice_and_no_weight_is_kept_unused(half):
    graph = onnx.load(half[0]).graph
    casts = Counter((node.input[0], node.attribute[0].i) for node in graph.node if node.op_type == "Cast")
    assert set(casts.values()) == {1}
    used = {name for node in graph.node for name in node.input}
    assert {w.name for w in graph.initializer} <= used
    shapes = {node.input[0] for node in graph.node if node.op_type == "Shape"}
    assert not shapes & {node.output[0] for node in graph.node if node.op_type == "Cast"}, "cast only to be measured"


def test_the_contract_is_kept_and_says_where_the_file_is_from(source, half):
    before, after = read_contract(source), read_contract(half[0])
    assert (after.labels, after.thresholds, after.input) == (before.labels, before.thresholds, before.input)
    assert after.provenance == {
        **before.provenance,
        "source_sha256": graph_digest(source),
    }


def graph_of(nodes, weights, output_type=TensorProto.FLOAT):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 2])],
        [value("y", output_type, None)],
        [numpy_helper.from_array(np.array(w, np.float32), name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_a_mask_of_a_large_negative_number_stays_finite():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Softmax", ["b"], ["y"]),
    ]
    model = converted(graph_of(nodes, {"w": np.eye(2), "mask": [-1e9, 0]}))
    mask = next(numpy_helper.to_array(w) for w in model.graph.initializer if w.name == "mask_fp16")
    assert mask.tolist() == [-65504.0, 0.0]


def test_a_weight_that_both_sides_use_is_there_in_both_types():
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "m"], ["b"]),
        helper.make_node("Mul", ["b", "w"], ["c"]),
        helper.make_node("Identity", ["c"], ["y"]),
    ]
    model = converted(graph_of(nodes, {"w": [1.0, 2.0], "m": np.eye(2)}))
    onnx.checker.check_model(model, full_check=True)
    assert {w.name: w.data_type for w in model.graph.initializer} == {
        "w": TensorProto.FLOAT,
        "m_fp16": TensorProto.FLOAT16,
        "w_fp16": TensorProto.FLOAT16,
    }


def pairs_of(scale):
    nodes = [
        helper.make_node("QuantizeLinear", ["m", "t", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "t", "z"], ["md"]),
        helper.make_node("MatMul", ["x", "md"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["y"]),
    ]
    weights = np.random.default_rng(0).normal(0, 0.05, (2, 2000)).astype(np.float32)
    model = graph_of(nodes, {"m": weights} | ({} if scale is None else {"t": scale}))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    if scale is None:
        model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["t"], keepdims=0))
    return model, weights


def test_weights_are_rounded_to_the_nearest_step_beside_fp16():
    model, weights = pairs_of(0.0021)
    stored = {w.name: numpy_helper.to_array(w) for w in packed(converted(model)).graph.initializer}
    step = stored["t_fp16"].astype(np.float32)
    exact = weights.astype(np.float16).astype(np.float32) / step
    assert np.abs(stored["mq"] - exact).max() <= 0.5


@pytest.mark.parametrize("scale", [7e4, None])
def test_a_scale_that_has_no_form_in_fp16_is_refused(scale):
    with pytest.raises(DataError, match="the scale t is beyond the range of FP16"):
        converted(pairs_of(scale)[0])


def test_attention_as_one_operator_is_fp16_and_its_output_holds(exported, tmp_path):
    shutil.copyfile(exported(projection="linear", opset=23).path, tmp_path / "model.onnx")
    made = to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx")
    assert made.parity.largest < 0.01
    model = onnx.shape_inference.infer_shapes(onnx.load(made.path), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    assert nodes
    assert {types[name] for node in nodes for name in (*node.input, *node.output)} == {TensorProto.FLOAT16}


def test_what_is_fp16_already_is_refused(half):
    with pytest.raises(DataError, match="FP16 already: convert the float32 file"):
        converted(onnx.load(half[0]))


def test_a_file_with_pairs_is_refused_because_its_weights_are_rounded_already(source, tmp_path):
    model = onnx.load(source)
    node = model.graph.node[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.node.insert(len(model.graph.node) - 1, helper.make_node("QuantizeLinear", [node.input[0], "s"], ["q"]))
    path = tmp_path / "int8.onnx"
    onnx.save(model, path)
    with pytest.raises(DataError, match="quantized already: convert the float32 file"):
        to_fp16(path, tmp_path / "half.onnx")
    assert not (tmp_path / "half.onnx").exists()


def test_a_pair_is_fp16_throughout_and_stands_directly_before_its_product():
    """Behind a LayerNorm in float32 and on weights; or TensorRT would not see a product of 8 bits."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "w"], ["n"]),
        helper.make_node("QuantizeLinear", ["n", "s", "z"], ["nq"]),
        helper.make_node("DequantizeLinear", ["nq", "s", "z"], ["nd"]),
        helper.make_node("QuantizeLinear", ["m", "t", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "t", "z"], ["md"]),
        helper.make_node("MatMul", ["nd", "md"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["y"]),
    ]
    model = graph_of(nodes, {"w": [1.0, 1.0], "m": np.eye(2), "s": 0.03, "t": 1e-9})
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    model = converted(model)
    onnx.checker.check_model(model, full_check=True)
    stored = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    by_kind = {kind: [n for n in model.graph.node if n.op_type == kind] for kind in ("DequantizeLinear", "MatMul")}
    assert list(by_kind["MatMul"][0].input) == ["nd", "md"]
    scales = [stored[node.input[1]] for node in by_kind["DequantizeLinear"]]
    assert [scale.dtype for scale in scales] == [np.float16, np.float16]
    assert scales[0] == pytest.approx(0.03, rel=1e-3)
    assert scales[0] >= np.float32(0.03), "rounded up, or the largest weight would be cut off"
    assert scales[1] == np.finfo(np.float16).smallest_subnormal, "not 0, by which nothing can be divided"


def test_beyond_the_budget_nothing_is_written_unless_told(source, tmp_path):
    target = tmp_path / "half.onnx"
    budget = replace(BUDGETS["float16"], largest=0.0, mean=0.0)
    with pytest.raises(ParityError, match="nothing was written: largest difference"):
        to_fp16(source, target, budget=budget)
    assert not list(tmp_path.iterdir())
    to_fp16(source, target, budget=budget, force=True)
    assert read_contract(target).numerics.precision == "float16"


def test_the_command(source, tmp_path):
    done = CliRunner().invoke(main, ["fp16", str(source), "-o", str(tmp_path / "half.onnx"), "--count", "3"])
    assert done.exit_code == 0, done.output
    assert " of 3 synthetic images" in done.output
    missing = CliRunner().invoke(main, ["fp16", str(tmp_path / "none.onnx")])
    assert missing.exit_code == 1
    assert "there is no model file" in missing.output


def refused(*arguments):
    """The one line of a command that writes nothing."""
    done = CliRunner().invoke(main, ["fp16", *map(str, arguments)])
    assert done.exit_code == 1, done.output
    (line,) = done.output.splitlines()
    return line


def test_a_place_that_cannot_be_written_to_is_one_line(source, tmp_path):
    (tmp_path / "folder").mkdir()
    folder = tmp_path / "folder"
    assert f"{folder} is a folder: name a file with -o, such as {folder / 'model.onnx'}" in refused(
        source, "-o", folder
    )
    assert f"no such folder: {tmp_path / 'no'}; create it first" in refused(source, "-o", tmp_path / "no" / "half.onnx")
    too_long = tmp_path / ("x" * 300)
    assert f"cannot write {too_long}: File name too long; choose another place" in refused(source, "-o", too_long)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_is_read_only_is_said(source, tmp_path):
    tmp_path.chmod(0o555)
    target = tmp_path / "half.onnx"
    assert f"cannot write {target}: Permission denied; choose another place" in refused(source, "-o", target)


def test_a_target_that_becomes_a_folder_meanwhile_is_left_alone(source, tmp_path):
    target = tmp_path / "copy.onnx"

    def convert(one, other):
        shutil.copy(one, other)
        target.mkdir()

    with pytest.raises(DataError, match=r"cannot write .*copy\.onnx: Is a directory; choose another place with -o"):
        convert_and_verify(source, target, "float32", convert)
    assert list(tmp_path.rglob("*")) == [target]


def test_a_full_disk_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(onnx, "save", full)
    done = CliRunner().invoke(main, ["fp16", str(source), "-o", str(tmp_path / "half.onnx")])
    assert done.exit_code == 1
    assert (
        done.output
        == f"Error: cannot write {tmp_path / 'half.onnx'}: No space left on device; choose another place with -o\n"
    )
    assert not list(tmp_path.iterdir())
