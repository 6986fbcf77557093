"""A calibration in the graph: the same logits, scaled and shifted, judged by the onnx package and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mineral_batch.errors import ContractError
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_batch.model.onnx_file import read_graph, read_metadata

SCALE, BIAS = np.array([0.5, 2.0, 1.25], np.float32), np.array([-1.0, 0.5, -4.0], np.float32)
PICTURES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def constant(name, values):
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def save(path, nodes, constants, outputs=("probabilities",)):
    kinds = {"top": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), ["N", None]) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"author": "somebody"})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


rng = np.random.default_rng(1)
WEIGHTS, OFFSET = rng.normal(size=(3, 4)), rng.normal(size=3)
SIGMOID = helper.make_node("Sigmoid", ["z"], ["probabilities"])


def linear(path, **attributes):
    """The head of a model that pools."""
    weights = WEIGHTS if attributes.get("transB", 1) else WEIGHTS.T
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["z"], **({"transB": 1} | attributes))
    return save(path, [gemm, SIGMOID], [constant("w", weights), constant("b", OFFSET)])


def summed(path):
    """Logits that are no linear layer's, as those of a label decoder with a group head."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["z"]),
        SIGMOID,
    ]
    return save(path, nodes, [constant("w", WEIGHTS.T), constant("b", OFFSET)])


def with_maps(path):
    """A linear layer whose weights and logits are used elsewhere too, as in a graph with maps."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["z"], transB=1),
        SIGMOID,
        helper.make_node("TopK", ["z", "k"], ["best", "top"], axis=1),
        helper.make_node("MatMul", ["z", "w"], ["maps"]),
    ]
    k = numpy_helper.from_array(np.array([1], np.int64), "k")
    return save(path, nodes, [constant("w", WEIGHTS), constant("b", OFFSET), k], ("probabilities", "top", "maps"))


def answers(path):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": PICTURES})


def logits():
    return PICTURES @ WEIGHTS.T.astype(np.float32) + OFFSET.astype(np.float32)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("make", [linear, summed, with_maps])
def test_the_first_output_is_the_calibrated_probability(tmp_path, make):
    path = make(tmp_path / "model.onnx")
    calibrate_graph(path, path, SCALE.tolist(), BIAS.tolist())
    np.testing.assert_allclose(answers(path)[0], sigmoid(SCALE * logits() + BIAS), atol=2e-6)
    assert read_metadata(path) == {"author": "somebody"}


@pytest.mark.parametrize("make", [linear, summed, with_maps])
def test_a_second_calibration_follows_the_first_and_adds_no_operation(tmp_path, make):
    path = make(tmp_path / "model.onnx")
    calibrate_graph(path, path, SCALE.tolist(), BIAS.tolist())
    before = read_graph(path)
    calibrate_graph(path, path, [2.0, 0.5, 1.0], [0.0, 1.0, -1.0])
    assert read_graph(path) == before
    expected = np.array([2.0, 0.5, 1.0]) * (SCALE * logits() + BIAS) + [0.0, 1.0, -1.0]
    np.testing.assert_allclose(answers(path)[0], sigmoid(expected), atol=2e-6)


def test_a_linear_head_keeps_its_form_and_every_other_byte(tmp_path):
    path, target = linear(tmp_path / "model.onnx"), tmp_path / "calibrated.onnx"
    calibrate_graph(path, target, SCALE.tolist(), BIAS.tolist())
    assert read_graph(target) == read_graph(path)
    before, after = onnx.load(path), onnx.load(target)
    for model in (before, after):
        del model.graph.initializer[:]
    assert before == after


def test_what_chooses_by_the_logits_sees_the_calibrated_ones(tmp_path):
    path = with_maps(tmp_path / "model.onnx")
    _, before, _maps = answers(path)
    calibrate_graph(path, path, SCALE.tolist(), BIAS.tolist())
    _, after, _ = answers(path)
    assert after.tolist() == (SCALE * logits() + BIAS).argmax(axis=1)[:, None].tolist()
    assert before.tolist() != after.tolist()


@pytest.mark.parametrize("attributes", [{"transB": 0}, {"alpha": 0.5}, {"beta": 2.0}])
def test_a_gemm_of_another_kind_gets_operations_of_its_own(tmp_path, attributes):
    path = linear(tmp_path / "model.onnx", **attributes)
    expected = answers(path)[0].astype(np.float64)
    calibrate_graph(path, path, SCALE.tolist(), BIAS.tolist())
    z = np.log(expected / (1 - expected))
    np.testing.assert_allclose(answers(path)[0], sigmoid(SCALE * z + BIAS), atol=1e-5)
    assert [node.operator for node in read_graph(path)[0]] == ["Gemm", "Mul", "Add", "Sigmoid"]


def test_a_graph_that_does_not_end_with_a_sigmoid_is_refused(tmp_path):
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["probabilities"], transB=1)]
    path = save(tmp_path / "model.onnx", nodes, [constant("w", WEIGHTS), constant("b", OFFSET)])
    before = path.read_bytes()
    with pytest.raises(ContractError, match=r"does not end with a sigmoid .* calibrate the float32 model"):
        calibrate_graph(path, path, SCALE.tolist(), BIAS.tolist())
    assert path.read_bytes() == before


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ContractError, match="not an ONNX file"):
        calibrate_graph(path, tmp_path / "out.onnx", [1.0], [0.0])
    assert not (tmp_path / "out.onnx").exists()
