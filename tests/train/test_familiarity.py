"""Familiarity: what does not look like the training images gets a low score, by numpy and by the graph alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mineral_batch.errors import ContractError, DataError
from mineral_batch.model.familiarity import add_familiarity
from mineral_batch.model.onnx_calibration import calibrate_graph
from mineral_train.familiarity import fit_familiarity

CHANNELS = 24


class World:
    """Features near a plane of six dimensions; strange ones lie beside it."""

    def __init__(self):
        self.rng = np.random.default_rng(0)
        self.mix = self.rng.normal(size=(6, CHANNELS))

    def draw(self, images, beside=0.0):
        near = self.rng.normal(size=(images, 6)) @ self.mix + 0.3 * self.rng.normal(size=(images, CHANNELS)) + 2
        return near + beside * self.rng.normal(size=CHANNELS)


def test_new_images_are_spread_evenly_and_strange_ones_are_near_zero():
    world = World()
    score = fit_familiarity(world.draw(800), components=6)
    familiar, strange = score(world.draw(2_000)), score(world.draw(300, beside=2.0))
    assert familiar.mean() == pytest.approx(0.5, abs=0.05)
    assert (familiar < 0.05).mean() == pytest.approx(0.05, abs=0.03)
    assert (strange < 0.05).mean() > 0.95
    assert ((familiar >= 0) & (familiar <= 1)).all()


def test_the_percentiles_of_images_held_out_are_exact():
    world = World()
    held = world.draw(400)
    score = fit_familiarity(world.draw(800), held=held, components=6)
    assert score(held).mean() == pytest.approx(0.5, abs=0.01)


def test_a_channel_that_never_varies_changes_nothing_to_infinity():
    features = World().draw(200)
    features[:, 5] = 1.0
    assert np.isfinite(fit_familiarity(features, components=6)(features)).all()


@pytest.mark.parametrize("features", [np.zeros((5, 8)), np.full((50, 8), np.nan)])
def test_too_few_or_broken_features_are_refused(features):
    with pytest.raises(DataError, match="20 or more images"):
        fit_familiarity(features)


def linear_model(path):
    """Features, a linear layer, a sigmoid."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node("Identity", ["x"], ["mean"]),
        helper.make_node("Gemm", ["mean", "w", "b"], ["z"], transB=1),
        helper.make_node("Sigmoid", ["z"], ["probabilities"]),
    ]
    constants = {"w": rng.normal(size=(3, CHANNELS)), "b": rng.normal(size=3)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", CHANNELS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def outputs(path, features):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": features}), strict=True))


def test_the_graph_computes_the_same_and_the_probabilities_stay(tmp_path):
    world, path = World(), linear_model(tmp_path / "model.onnx")
    features = np.concatenate([world.draw(50), world.draw(20, beside=1.0)]).astype(np.float32)
    before = outputs(path, features)["probabilities"]
    for seed in (0, 1):  # a second score takes the place of the first
        score = fit_familiarity(world.draw(400), components=6, seed=seed)
        add_familiarity(path, path, score)
        found = outputs(path, features)
        assert list(found) == ["probabilities", "familiarity"]
        np.testing.assert_array_equal(found["probabilities"], before)
        np.testing.assert_allclose(found["familiarity"][:, 0], score(features), atol=2e-3)


def test_a_calibration_changes_no_familiarity(tmp_path):
    world, path = World(), linear_model(tmp_path / "model.onnx")
    features = world.draw(30).astype(np.float32)
    add_familiarity(path, path, fit_familiarity(world.draw(400), components=6))
    before = outputs(path, features)
    calibrate_graph(path, path, [0.5, 1.0, 2.0], [0.0, 1.0, 0.0])
    after = outputs(path, features)
    np.testing.assert_array_equal(after["familiarity"], before["familiarity"])
    assert not np.allclose(after["probabilities"], before["probabilities"])


def test_a_model_of_another_form_is_refused(tmp_path):
    path = linear_model(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[1].op_type, model.graph.node[1].input[:] = "MatMul", ["mean", "w2"]
    del model.graph.node[1].attribute[:]
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((CHANNELS, 3), np.float32), "w2"))
    onnx.save(model, path)
    with pytest.raises(ContractError, match="only such a model has a familiarity"):
        add_familiarity(path, path, fit_familiarity(World().draw(100), components=6))
