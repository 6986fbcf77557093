"""A conversion leaves the familiarity as it is: a float32 branch that reads the converted features."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from mineral_batch.model.familiarity import OUTPUT, FamiliarityScore, add_familiarity, features_name
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.onnx_graph import Graph
from mineral_export.precision.calibration import MIN_CALIBRATION
from mineral_export.precision.fp16 import to_fp16
from mineral_export.precision.int8 import TARGETS, to_int8
from mineral_export.precision.qdq import is_quantized
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.samples import synthetic_images


@pytest.fixture(scope="module")
def source(exported, tmp_path_factory):
    """A pooling model whose familiarity runs from 0 to 1 over the images of `calibration`."""
    path = tmp_path_factory.mktemp("familiarity") / "model.onnx"
    model = onnx.load(exported(backbone="test_efficientnet", method="pool").path)
    onnx.save(model, path)
    name = features_name(path, Graph.parse(model.graph.SerializeToString()))
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    images = calibration(path)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features = session.run([name], {session.get_inputs()[0].name: images})[0].astype(np.float64)
    components = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][:2]
    flat = FamiliarityScore(
        features.mean(axis=0), np.ones(features.shape[1]), components, np.ones(2), 1.0, np.linspace(-1, 1, 101)
    )
    strangeness = flat.strangeness(features)
    quantiles = np.linspace(strangeness.min() - 0.5, strangeness.max() + 0.5, 101)
    score = FamiliarityScore(flat.mean, flat.inverse_sd, components, flat.weights, 1.0, quantiles)
    add_familiarity(path, path, score)
    return path


def calibration(path):
    return synthetic_images(read_contract(path).input, MIN_CALIBRATION)


def familiarity(path):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {session.get_inputs()[0].name: calibration(path)})[0][:, 0]


def branch(path):
    """The nodes of the familiarity, and the types of what they give."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.value_info, *model.graph.output]}
    nodes = [node for node in model.graph.node if node.output[0].startswith(OUTPUT)]
    return [node.op_type for node in nodes], {types[node.output[0]] for node in nodes}


def test_fp16_computes_the_familiarity_in_float32(source, tmp_path):
    to_fp16(source, tmp_path / "half.onnx")
    assert branch(tmp_path / "half.onnx") == (branch(source)[0], {TensorProto.FLOAT})
    before = familiarity(source)
    assert before.min() < 0.3, "the images do not differ"
    assert before.max() > 0.7, "the images do not differ"
    np.testing.assert_allclose(familiarity(tmp_path / "half.onnx"), before, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("engine", TARGETS)
def test_int8_rounds_nothing_of_the_familiarity(engine, source, tmp_path):
    pytest.importorskip("nncf", reason="nncf is not installed (extra int8)")
    made = to_int8(source, tmp_path / "int8.onnx", calibration(source), for_engine=engine, force=True)
    assert is_quantized(onnx.load(tmp_path / "int8.onnx"))
    assert branch(tmp_path / "int8.onnx") == (branch(source)[0], {TensorProto.FLOAT})
    assert made.layers == sum(node.op_type in ("Conv", "Gemm") for node in onnx.load(source).graph.node)


@pytest.mark.slow
def test_openvino_takes_an_int8_file_with_a_familiarity(source, tmp_path):
    """Its per-channel scale in front of a product was taken for SmoothQuant's, and the file was refused."""
    pytest.importorskip("nncf", reason="nncf is not installed (extra int8)")
    pytest.importorskip("openvino", reason="openvino is not installed (extra openvino)")
    path = tmp_path / "int8.onnx"
    to_int8(source, path, calibration(source), for_engine="openvino", force=True)
    with open_artifact(f"{path}@openvino:float32") as artifact:
        assert artifact.predict(calibration(source)).shape == (MIN_CALIBRATION, 3)
