"""Small graphs whose layers are rounded by hand."""

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def pair(name, to, step, axis=None, per=()):
    """Nodes and weights that round `name` to multiples of `step`, giving `to`."""
    options = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", [name, f"{to}:s", f"{to}:z"], [f"{to}:q"], **options),
        helper.make_node("DequantizeLinear", [f"{to}:q", f"{to}:s", f"{to}:z"], [to], **options),
    ]
    weights = [
        numpy_helper.from_array(np.full(per, step, np.float32), f"{to}:s"),
        numpy_helper.from_array(np.zeros(per, np.int8), f"{to}:z"),
    ]
    return nodes, weights


def chain(bias=0.0):
    """x (N, 4) through two matrix layers with a bias after the second."""
    value = helper.make_tensor_value_info
    weights = {
        "w1": np.eye(4, dtype=np.float32),
        "w2": np.diag([1, 2, 3, 4]).astype(np.float32),
        "b": np.full(4, bias, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w2"], ["c"], name="second"),
        helper.make_node("Add", ["c", "b"], ["y"], name="bias"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["N", 4])],
        [value("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def with_rounding(layer, step, bias=0.0):
    """`chain` with the layer's input rounded to multiples of `step`, its weight to integers."""
    model = chain(bias)
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == layer)
    inputs, more = pair(node.input[0], "d", step)
    constants, channels = pair(node.input[1], "dw", 1.0, axis=1, per=(4,))
    node.input[0], node.input[1] = "d", "dw"
    nodes = [*model.graph.node[:index], *inputs, *constants, *model.graph.node[index:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*more, *channels])
    return model


def answers(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.array(x, np.float32)})[0]
