"""Explainers: batches, pooled models, and the same probabilities as without maps."""

from __future__ import annotations

import numpy as np
import pytest

from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import ContractError
from mineral_batch.explain.explainer import open_explainer
from mineral_batch.explain.maps import MapSpec
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.familiarity import FamiliarityScore, add_familiarity
from mineral_batch.model.onnx_file import write_contract
from mineral_batch.model.starter import starter_path

from .models import GRID, LABELS, SPEC, onnx, pooled_model, write_pooled


def test_batch_equals_single_images(color_model_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, *SPEC.shape), dtype=np.uint8)
    with open_explainer(color_model_path) as explainer:
        together = explainer.infer(pixels)
        for index in range(5):
            alone = explainer.infer(pixels[index : index + 1])
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_allclose(one[0], other[index], atol=1e-6)


def test_file_with_maps_predicts_the_same(color_model_path):
    pixels = np.random.default_rng(1).integers(0, 256, (3, *SPEC.shape), dtype=np.uint8)
    with open_explainer(color_model_path) as explainer:
        np.testing.assert_array_equal(
            open_backend(color_model_path, "onnx-cpu").infer(pixels), explainer.infer(pixels)[0]
        )


def test_pooled_model_has_a_map_for_every_label(tmp_path):
    held = write_pooled(tmp_path / "pooled.onnx")
    pixels = np.random.default_rng(2).integers(0, 256, (3, *SPEC.shape), dtype=np.uint8)
    with open_explainer(tmp_path / "pooled.onnx") as explainer:
        answer = explainer.infer(pixels)
        assert explainer.maps == MapSpec("grad-cam", GRID, 3)
    np.testing.assert_array_equal(answer.labels, np.argsort(-answer.probabilities, axis=1))
    np.testing.assert_array_equal(
        open_backend(tmp_path / "pooled.onnx", "onnx-cpu").infer(pixels), answer.probabilities
    )
    # By the definition, in float64: the weights of the feature maps, their sum, what speaks for the label.
    patches = pixels.reshape(3, 12, 8, 16, 8, 3).mean(axis=(2, 4)) / 255
    features = np.maximum(patches @ held["colors"][:, :, 0, 0].T.astype(float), 0)
    for picture in range(3):
        for place, label in enumerate(answer.labels[picture]):
            heat = np.maximum(features[picture] @ held["weights"][label].astype(float), 0)
            expected = heat / heat.max() if heat.max() else heat
            np.testing.assert_allclose(answer.maps[picture, place], expected, atol=1e-5)


def test_pooled_head_that_breaks_the_formula_is_refused(tmp_path):
    write_pooled(tmp_path / "scaled.onnx", alpha=0.5)
    with pytest.raises(ContractError, match="gives no maps of where it looks"):
        open_explainer(tmp_path / "scaled.onnx")


def test_starter_predicts_the_same_with_and_model_with_broken_metadata():
    pixels = np.random.default_rng(5).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    with open_explainer(starter_path()) as explainer:
        np.testing.assert_array_equal(
            open_backend(starter_path(), "onnx-cpu").infer(pixels), explainer.infer(pixels).probabilities
        )


def test_calibrated_pooled_model_keeps_its_maps(tmp_path):
    """A calibration between the logits and the sigmoid changes probabilities, not where the model looks."""
    write_pooled(tmp_path / "plain.onnx")
    model, _ = pooled_model()
    *body, sigmoid = model.graph.node
    slope = onnx.numpy_helper.from_array(np.array([0.5, 2, 0.7], np.float32))
    calibration = [
        onnx.helper.make_node("Constant", [], ["slope"], value=slope),
        onnx.helper.make_node("Mul", ["slope", "logits"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "shift"], ["calibrated"]),
    ]
    sigmoid.input[0] = "calibrated"
    del model.graph.node[:]
    model.graph.node.extend([*body, *calibration, sigmoid])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 0.3, 2], np.float32), "shift"))
    onnx.save(model, str(tmp_path / "calibrated.onnx"))
    write_contract(tmp_path / "calibrated.onnx", ModelContract(LABELS, (0.5, 0.5, 0.5), SPEC))
    pixels = np.random.default_rng(4).integers(0, 256, (2, *SPEC.shape), dtype=np.uint8)
    with open_explainer(tmp_path / "plain.onnx") as plain, open_explainer(tmp_path / "calibrated.onnx") as calibrated:
        before, after = plain.infer(pixels), calibrated.infer(pixels)
    assert np.abs(before.probabilities - after.probabilities).max() > 0.1
    by_label = [
        np.take_along_axis(one.maps, np.argsort(one.labels, axis=1)[..., None, None], axis=1) for one in (before, after)
    ]
    np.testing.assert_allclose(*by_label, atol=1e-6)


def test_pooled_model_with_a_familiarity_keeps_its_maps(tmp_path):
    """Another output stands between the probabilities and what is added for the maps."""
    write_pooled(tmp_path / "plain.onnx")
    rng = np.random.default_rng(6)
    score = FamiliarityScore(
        mean=rng.normal(size=5),
        inverse_sd=np.ones(5),
        components=np.eye(2, 5),
        weights=np.ones(2),
        inverse_rest=1.0,
        quantiles=np.linspace(-1, 1, 101),
    )
    add_familiarity(tmp_path / "plain.onnx", tmp_path / "scored.onnx", score)
    pixels = rng.integers(0, 256, (2, *SPEC.shape), dtype=np.uint8)
    with open_explainer(tmp_path / "plain.onnx") as plain, open_explainer(tmp_path / "scored.onnx") as scored:
        for one, other in zip(plain.infer(pixels), scored.infer(pixels), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_outputs_behind_the_maps_are_ignored(color_model_path, tmp_path):
    model = onnx.load(str(color_model_path))
    model.graph.output.append(onnx.helper.make_tensor_value_info("evidence", onnx.TensorProto.FLOAT, ["N", 3]))
    onnx.save(model, str(tmp_path / "more.onnx"))
    pixels = np.random.default_rng(7).integers(0, 256, (2, *SPEC.shape), dtype=np.uint8)
    with open_explainer(color_model_path) as plain, open_explainer(tmp_path / "more.onnx") as more:
        for one, other in zip(plain.infer(pixels), more.infer(pixels), strict=True):
            np.testing.assert_array_equal(one, other)
