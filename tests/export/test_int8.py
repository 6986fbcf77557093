"""INT8: what the graph holds, which layers are measured as sensitive, and what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mineral_export import quantise
from mineral_export.cli import main
from mineral_export.onnx import export_onnx
from mineral_export.quantise import layer_errors


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    export_onnx(*tiny(backbone="test_efficientnet", method="pool"), path)
    return path


def chain(scale: float = 1.0):
    """x (N, 4) through two matrix layers, with Q/DQ on the second one's weight if `scale` is given."""
    value = helper.make_tensor_value_info
    weights = {"w1": np.eye(4, dtype=np.float32), "w2": np.diag([1, 2, 3, 4]).astype(np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 4])],
        [value("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def with_rounding(layer: str, step: float):
    """`chain` with the layer's input rounded to multiples of `step`."""
    model = chain()
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == layer)
    pair = [
        helper.make_node("QuantizeLinear", [node.input[0], "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
    ]
    node.input[0] = "d"
    nodes = [*model.graph.node[:index], *pair, *model.graph.node[index:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(step), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    return model


def test_a_layers_error_is_that_of_its_own_rounding():
    """Inputs 0.4 rounded to 0.5: an error of a quarter, whatever the weights."""
    pictures = np.full((2, 4), 0.4, np.float32)
    assert layer_errors(chain(), with_rounding("first", 0.5), pictures) == {"first": pytest.approx(0.25, rel=1e-5)}
    assert layer_errors(chain(), with_rounding("second", 0.5), pictures) == {"second": pytest.approx(0.25, rel=1e-5)}


def test_a_layer_that_is_exact_has_no_error():
    assert layer_errors(chain(), with_rounding("second", 0.25), np.full((1, 4), 0.5, np.float32)) == {"second": 0.0}


def test_unsigned_tensors_become_signed_over_the_same_range():
    model = with_rounding("first", 0.02)
    zero = next(w for w in model.graph.initializer if w.name == "z")
    zero.CopyFrom(numpy_helper.from_array(np.uint8(0), "z"))
    quantise._signed(model)
    found = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert found["z"].dtype == np.int8
    assert 127 * found["s"] == pytest.approx(255 * 0.02)


def test_without_nncf_one_line_says_what_to_install(source, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    arguments = ["int8", str(source), "--calibrate", str(tmp_path / "photos"), "-o", str(tmp_path / "int8.onnx")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert 'pip install "mineral-batch[int8]"' in done.output
    assert not (tmp_path / "int8.onnx").exists()
