"""Convert a float32 graph to a typed FP16 graph: every tensor's type is in the file, none is left to the engine.

TensorRT 11 and strongly typed networks of 10.12 take precision from the graph alone. What is sensitive stays float32:
the image normalization, norms, softmax, the last sigmoid, whose input is cast up before it, and the familiarity. A
LayerNorm takes and gives FP16 and computes in float32: ONNX says so with `stash_type` 1, and TensorRT does so by
default (`INormalizationLayer.compute_precision`). Between two casts ONNX Runtime could not fuse it with the sum
before it.
Inputs and outputs keep their types. An `Attention` operator is FP16, its softmax up to the engine: ONNX Runtime's
CUDA kernels refuse the attribute `softmax_precision`, and flash attention sums in float32. A Q/DQ pair is FP16
throughout, scale included: TensorRT recognizes a product of 8 bits only if nothing is in between.

Why our own pass: on the exported ViT, onnxconverter-common 1.16 writes a graph that ONNX Runtime refuses (it
leaves `Cast` nodes pointing to float32), and ModelOpt's AutoCast, whose graph is as good, installs fourteen packages,
among them onnxruntime-gpu, which breaks onnxruntime (benchmarks/README.md compares the graphs).
"""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mineral_batch.errors import DataError
from mineral_export.precision.qdq import DEQUANTIZE, QUANTIZE, is_quantized, side_nodes, with_half_scales
from mineral_export.verify.convert import ExportedFile, convert_and_verify

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.verify.budget import Budget
    from mineral_export.verify.samples import Samples

#: Sums of many squares and exponentials leave FP16's range (largest 65504) or lose what they sum; `Resize` takes its
#: scales in float32 only.
FLOAT32_OPERATORS = frozenset(
    {"RMSNormalization", "GroupNormalization", "InstanceNormalization", "LpNormalization"}
    | {"BatchNormalization", "Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Reciprocal", "Softplus", "CumSum", "Resize"}
    | {"ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "ReduceProd", "MeanVarianceNormalization"}
)
# From the first of these on the graph is FP16: what comes before is the normalization.
_MATRIX_OPERATORS = frozenset({"Conv", "MatMul", "Gemm"})
_LARGEST = float(np.finfo(np.float16).max)


def to_fp16(
    source: Path,
    target: Path,
    *,
    samples: Samples | None = None,
    budget: Budget | None = None,
    force: bool = False,
) -> ExportedFile:
    """Write an ONNX file as a typed FP16 graph with the same contract, compared with the source before it is written.

    Args:
        source: float32, written by `export_onnx`.
        target: where to write.
        samples: images to compare on; None for synthetic ones.
        budget: None for `BUDGETS["float16"]`.
        force: write the file even if it exceeds the budget.

    Raises:
        ParityError: if the output differs by more than the budget; nothing is written.
        ContractError: if the source is not a model with a contract.
        DataError: if the source is not a plain float32 graph, or the target cannot be written.
    """
    return convert_and_verify(source, target, "float16", _write, samples=samples, budget=budget, force=force)


def _write(source: Path, target: Path) -> None:
    model = onnx.load(source)
    if is_quantized(model):
        raise DataError("the graph is quantized already: convert the float32 file that it was made from")
    model = converted(model)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def converted(model: ModelProto) -> ModelProto:
    """Return the model as a typed FP16 graph.

    Args:
        model: float32, without subgraphs, perhaps with Q/DQ pairs whose weights are not packed yet; not changed.

    Raises:
        DataError: if it is FP16 already, or has branches or loops.
    """
    _check(model)
    rounded = with_half_scales(model) if is_quantized(model) else model
    inferred = onnx.shape_inference.infer_shapes(rounded, strict_mode=True, data_prop=True)
    graph = _Graph.of(inferred)
    for node in graph.model.graph.node:
        graph.rewrite(node)
    return graph.finished()


def _check(model: ModelProto) -> None:
    for node in model.graph.node:
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise DataError(f"the graph has a branch or a loop ({node.op_type}), which cannot be converted to FP16")
    if any(weights.data_type == TensorProto.FLOAT16 for weights in model.graph.initializer):
        raise DataError("the graph is FP16 already: convert the float32 file that it was made from")


@dataclass
class _Graph:
    """A graph while it is converted to FP16.

    Attributes:
        model: the float32 model with the type of every tensor inferred.
        floats: names of the tensors that are float32 in it.
        weights: its initializers by name.
        beside: names of the tensors that the probabilities do not need.
        after: names of the tensors that come after a matrix operator.
        half: names of the tensors that are already FP16.
        nodes: the new nodes, in order.
        casts: (tensor, type) -> the name of the tensor in that type.
        added: FP16 copies of the initializers in use.
    """

    model: ModelProto
    floats: set[str]
    weights: dict[str, TensorProto]
    outputs: set[str]
    beside: set[str]
    after: set[str] = field(default_factory=set)
    half: set[str] = field(default_factory=set)
    nodes: list[NodeProto] = field(default_factory=list)
    casts: dict[tuple[str, int], str] = field(default_factory=dict)
    added: dict[str, TensorProto] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelProto) -> _Graph:
        graph = model.graph
        typed = [*graph.value_info, *graph.input, *graph.output]
        floats = {value.name for value in typed if value.type.tensor_type.elem_type == TensorProto.FLOAT}
        weights = {weight.name: weight for weight in graph.initializer}
        floats |= {name for name, weight in weights.items() if weight.data_type == TensorProto.FLOAT}
        beside = {name for node in side_nodes(model) for name in node.output}
        return cls(model, floats, weights, {value.name for value in graph.output}, beside)

    def rewrite(self, node: NodeProto) -> None:
        """Add the node in the type that it shall compute in, with the casts that its inputs need."""
        if node.op_type in _MATRIX_OPERATORS or self.after.intersection(node.input):
            self.after.update(node.output)
        new = NodeProto()
        new.CopyFrom(node)
        is_half = self._is_half(node)
        wanted = TensorProto.FLOAT16 if is_half else TensorProto.FLOAT
        for index, name in enumerate(node.input):
            if name in self.floats:
                new.input[index] = self._as(name, wanted)
        if is_half:
            self.half.update(self.floats.intersection(node.output))
            _retype(new)
        self.nodes.append(new)

    def _is_half(self, node: NodeProto) -> bool:
        """Whether the node computes in FP16: after the normalization, not sensitive, and not the graph's last."""
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            return True
        if not self.floats.intersection(node.output):  # `Shape` and comparisons take what there is
            return bool(self.half.intersection(node.input))
        if _computes_in_float32(node) or (self.outputs | self.beside).intersection(node.output):
            return False
        return bool(self.after.intersection(node.output))

    def _as(self, name: str, wanted: int) -> str:
        """Return the tensor in that type: itself, an FP16 copy of a weight, or the output of a `Cast`."""
        if wanted == (TensorProto.FLOAT16 if name in self.half else TensorProto.FLOAT):
            return name
        if (name, wanted) not in self.casts:
            self.casts[name, wanted] = new = f"{name}_{'fp16' if wanted == TensorProto.FLOAT16 else 'fp32'}"
            if name in self.weights:
                self.added[new] = _half(self.weights[name], new)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], name=f"cast_{new}", to=wanted))
        return self.casts[name, wanted]

    def finished(self) -> ModelProto:
        """Return the new model: only weights in use; types are inferred again."""
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input} | self.outputs
        weights = [w for name, w in ChainMap(self.added, self.weights).items() if name in used]
        del graph.value_info[:], graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(weights)
        return self.model


def _computes_in_float32(node: NodeProto) -> bool:
    """Whether the node's tensors stay float32: it is sensitive, or a LayerNorm that does not compute in float32."""
    is_narrow = any(a.name == "stash_type" and a.i != TensorProto.FLOAT for a in node.attribute)
    return node.op_type in FLOAT32_OPERATORS or (node.op_type == "LayerNormalization" and is_narrow)


def _retype(node: NodeProto) -> None:
    """Change what a node itself states about its output's type."""
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
            attribute.i = TensorProto.FLOAT16
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_half(attribute.t, attribute.t.name))


def _half(weights: TensorProto, name: str) -> TensorProto:
    """Return an FP16 copy; finite numbers stay finite, or a mask of -1e9 would become -inf (and -inf - -inf NaN)."""
    values = numpy_helper.to_array(weights)
    clipped = np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), values)
    return numpy_helper.from_array(clipped.astype(np.float16), name)
