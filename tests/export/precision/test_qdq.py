"""Graphs with Q/DQ pairs: each layer's error, layers taken back, weights packed, signs of activations."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from mineral_export.precision import int8 as int8_room
from mineral_export.precision.layer_errors import layer_errors
from mineral_export.precision.qdq import is_quantized, left_in_float32, packed, quantized_layers

from .graphs import answers, chain, with_rounding


def test_a_layers_error_is_that_of_its_own_rounding():
    """Inputs 0.4 rounded to 0.5: an error of a quarter, whatever the weights."""
    pictures = np.full((2, 4), 0.4, np.float32)
    assert layer_errors(chain(), with_rounding("first", 0.5), pictures) == {"first": pytest.approx(0.25, rel=1e-5)}
    assert layer_errors(chain(), with_rounding("second", 0.5), pictures) == {"second": pytest.approx(0.25, rel=1e-5)}


def test_a_layer_that_is_exact_has_no_error():
    assert layer_errors(chain(), with_rounding("second", 0.25), np.full((1, 4), 0.5, np.float32)) == {"second": 0.0}


def test_a_layer_taken_back_is_as_it_was_its_bias_too():
    x = [[0.4, 0.4, 0.4, 0.4]]
    model = with_rounding("second", 0.5, bias=7.0)
    assert quantized_layers(model) == ("second",)
    assert answers(model, x)[0].tolist() == [7.5, 8.0, 8.5, 9.0]
    back = left_in_float32(model, chain(bias=1.0), {"second"})
    assert not is_quantized(back)
    assert answers(back, x) == pytest.approx(answers(chain(bias=1.0), x))
    assert answers(left_in_float32(model, chain(bias=1.0), ()), x) == pytest.approx(answers(model, x))


def test_packing_stores_eight_bits_and_changes_no_answer():
    model, x = with_rounding("second", 0.5), [[0.4, 1.0, 2.3, 0.1]]
    small = packed(model)
    onnx.checker.check_model(small, full_check=True)
    assert answers(small, x) == pytest.approx(answers(model, x))
    stored = {w.name: w.data_type for w in small.graph.initializer}
    assert stored["dw:q"] == TensorProto.INT8
    assert "w2" not in stored
    assert [n.op_type for n in small.graph.node].count("QuantizeLinear") == 1


def test_unsigned_tensors_become_signed_over_the_same_range():
    model = with_rounding("first", 0.02)
    zero = next(w for w in model.graph.initializer if w.name == "d:z")
    zero.CopyFrom(numpy_helper.from_array(np.uint8(0), "d:z"))
    int8_room._signed(model)
    found = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    assert found["d:z"].dtype == np.int8
    assert 127 * found["d:s"] == pytest.approx(255 * 0.02)


def test_signed_tensors_become_unsigned_with_the_same_values():
    model, x = with_rounding("second", 0.5), [[0.4, -1.0, 2.3, -0.1]]
    before = answers(model, x)
    int8_room._unsigned(model)
    zeros = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer if w.name.endswith(":z")}
    assert zeros["d:z"] == 128
    assert zeros["d:z"].dtype == np.uint8
    assert zeros["dw:z"].dtype == np.int8, "weights stay signed"
    assert answers(model, x) == pytest.approx(before)
