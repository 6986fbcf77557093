"""Tiny models with maps, and photographs and masks to try them on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mineral_batch.explain.maps import MAPS_KEY, MapSpec
from mineral_batch.model.contract import InputSpec, ModelContract
from mineral_batch.model.onnx_file import write_contract, write_metadata

onnx = pytest.importorskip("onnx", reason="the tiny model is built with the onnx package")

LABELS = ("cinnabar", "malachite/green", "azurite")
CHANNEL = {"cinnabar": 0, "malachite/green": 1, "azurite": 2}
SPEC = InputSpec(height=96, width=128, interpolation="bilinear")
GRID = (12, 16)


def color_model():
    """Build a ModelProto that knows red, green and blue: a label's map is where its color outweighs the others."""
    helper, kind = onnx.helper, onnx.TensorProto
    weights = np.full((3, 3, 1, 1), -0.5, np.float32)
    weights[range(3), range(3)] = 1
    constants = {
        "scale": np.float32(255),
        "weights": weights,
        "k": np.array([2]),
        "half": np.float32(0.4),
        "steep": np.float32(12),
        "tiny": np.float32(1e-9),
        "two": np.array([2]),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["patches", "weights"], ["outweighs"]),
        helper.make_node("Relu", ["outweighs"], ["heat"]),
        helper.make_node("GlobalMaxPool", ["heat"], ["largest"]),
        helper.make_node("Flatten", ["largest"], ["evidence"]),
        helper.make_node("Sub", ["evidence", "half"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
        helper.make_node("TopK", ["probabilities", "k"], ["values", "top_labels"]),
        helper.make_node("Max", ["largest", "tiny"], ["divisor"]),
        helper.make_node("Div", ["heat", "divisor"], ["normal"]),
        helper.make_node("Unsqueeze", ["top_labels", "two"], ["indices"]),
        helper.make_node("GatherND", ["normal", "indices"], ["maps"], batch_dims=1),
    ]
    outputs = [
        ("probabilities", kind.FLOAT, ["N", 3]),
        ("top_labels", kind.INT64, ["N", 2]),
        ("maps", kind.FLOAT, ["N", 2, *GRID]),
    ]
    graph = helper.make_graph(
        nodes,
        "colors",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SPEC.height, SPEC.width, 3])],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def pooled_model(**gemm):
    """Build a ModelProto that ends like a CNN with mean pooling; `gemm`: attributes of its linear layer."""
    helper, kind = onnx.helper, onnx.TensorProto
    rng = np.random.default_rng(3)
    constants = {
        "scale": np.float32(255),
        "colors": rng.normal(size=(5, 3, 1, 1)).astype(np.float32),
        "flat": np.array([0, 5, -1]),
        "places": np.array([1]),
        "weights": rng.normal(0, 6, (3, 5)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["pixels"], ["cast"], to=kind.FLOAT),
        helper.make_node("Div", ["cast", "scale"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["planes"], ["patches"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Conv", ["patches", "colors"], ["mixed"]),
        helper.make_node("Relu", ["mixed"], ["features"]),
        helper.make_node("Reshape", ["features", "flat"], ["lists"]),
        helper.make_node("Transpose", ["lists"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMean", ["tokens", "places"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weights", "bias"], ["logits"], transB=1, **gemm),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("pixels", kind.UINT8, ["N", SPEC.height, SPEC.width, 3])],
        [helper.make_tensor_value_info("probabilities", kind.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), constants


def write_pooled(path, **gemm):
    model, constants = pooled_model(**gemm)
    onnx.save(model, str(path))
    write_contract(path, ModelContract(LABELS, (0.5, 0.5, 0.5), SPEC, name="pooled"))
    return constants


def write_color_model(path, spec=SPEC):
    onnx.save(color_model(), str(path))
    write_contract(path, ModelContract(LABELS, (0.5, 0.5, 0.5), spec, name="colors"))
    write_metadata(path, {MAPS_KEY: MapSpec("grad-cam", GRID, 2).to_json()})
    return path


def picture(size, *squares):
    """Gray, with colored squares (label, left, top, side); RGB."""
    pixels = np.full((size[1], size[0], 3), 120, np.uint8)
    for label, left, top, side in squares:
        pixels[top : top + side, left : left + side] = 20
        pixels[top : top + side, left : left + side, CHANNEL[label]] = 240
    return Image.fromarray(pixels)


def square_mask(size, left, top, side):
    mask = np.zeros((size[1], size[0]), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def save_mask(path, size, *squares, names=("none", *LABELS)):
    values = np.zeros((size[1], size[0]), np.uint8)
    for label, left, top, side in squares:
        values[top : top + side, left : left + side] = names.index(label)
    mask = Image.fromarray(values, "L")
    palette = Image.frombytes("P", mask.size, mask.tobytes())
    palette.putpalette([0, 0, 0] * 40)
    text = PngInfo()
    text.add_text("Values", ";".join(f"{value}={name}" for value, name in enumerate(names)))
    palette.save(path, pnginfo=text)
