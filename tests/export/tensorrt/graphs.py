"""What the tests of TensorRT engines share: commands, a graph built in a fraction of a second, checks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mineral_batch.engines.tensorrt.plan import EngineRecord, read_record
from mineral_batch.model.contract import InputSpec, ModelContract
from mineral_batch.model.onnx_file import write_contract
from mineral_export.cli import main
from mineral_export.precision.qdq import side_nodes

TWO_CHIPS = ("--compute-capability", "8.9", "--compute-capability", "12.0")
ONE_CHIP = TWO_CHIPS[:2]
SIDE = 32
LABELS = ("quartz", "pyrite", "Рубин")


def run(*words: object) -> Any:
    return CliRunner().invoke(main, ["trt", *map(str, words)])


def built(*words: object) -> EngineRecord:
    result = run(*words, "-q")
    assert result.exit_code == 0, result.output
    return read_record(Path(str(words[words.index("-o") + 1])))


def refused(*words: object) -> str:
    result = run(*words, "-q")
    assert result.exit_code == 1, result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
    return str(result.output)


def products(path: Path) -> int:
    """Convolutions and matrix products that the probabilities need; an attention counts as one."""
    model = onnx.load(path)
    beside = {node.output[0] for node in side_nodes(model)}
    kinds = Counter(node.op_type for node in model.graph.node if node.output[0] not in beside)
    return kinds["Conv"] + kinds["MatMul"] + kinds["Gemm"] + kinds["Attention"]


def write_product(folder: Path, *, quantized: bool = False, second: int | None = None) -> Path:
    """Pictures of SIDE pixels to three labels.

    Args:
        folder: to write to.
        quantized: the product is of INT8 numbers, with Q/DQ pairs.
        second: the element type of a second product after the first.
    """
    random = np.random.default_rng(0)
    weights = {
        "weights": random.normal(0, 0.05, (3 * SIDE**2, 3)).astype(np.float32),
        "shape": np.array([0, -1], np.int64),
        "scale": np.float32(255),
        "step": np.float32(0.03),
        "steps": np.float32(0.002),
        "zero": np.int8(0),
        "more": random.normal(0, 1, (3, 3)).astype(np.float32),
    }
    nodes = [("Cast", "pixels", "float", {"to": 1}), ("Reshape", "float shape", "flat", {})]
    nodes += [("Div", "flat scale", "x", {})]
    given, by = "x", "weights"
    if quantized:
        nodes += [("QuantizeLinear", "x step zero", "xq", {}), ("DequantizeLinear", "xq step zero", "xd", {})]
        nodes += [("QuantizeLinear", "weights steps zero", "wq", {}), ("DequantizeLinear", "wq steps zero", "wd", {})]
        given, by = "xd", "wd"
    nodes += [("MatMul", f"{given} {by}", "y", {})]
    if second:
        nodes += [("Cast", "y", "y2", {"to": second}), ("Cast", "more", "m2", {"to": second})]
        nodes += [("MatMul", "y2 m2", "z2", {}), ("Cast", "z2", "z", {"to": 1})]
    nodes += [("Sigmoid", "z" if second else "y", "probabilities", {})]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(kind, taken.split(), [gives], **more) for kind, taken, gives, more in nodes],
            "product",
            [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 3])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = folder / "model.onnx"
    onnx.save(model, path)
    write_contract(path, ModelContract(LABELS, (0.5,) * 3, InputSpec(SIDE, SIDE), name="product"))
    return path


def nothing_but_the_model(plan: Path) -> bool:
    return sorted(path.name for path in plan.parent.iterdir()) == ["model.onnx"]
