"""Put a calibration into an ONNX file's graph: sigmoid(z_k) becomes sigmoid(scale_k z_k + bias_k).

Neither `onnx` nor `protobuf` is needed. Where the logits come from a linear layer of its own float32 weights (`Gemm`),
its rows are scaled, and the graph keeps its form. Elsewhere `Mul` and `Add` stand behind the logits, in front of
everything that used them, so that the choice of a graph's maps follows the calibrated values; a second calibration
changes their constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import ContractError
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.model.onnx_file import GRAPH, read_fields, reading
from mineral_batch.model.protobuf import FIXED32, VARINT, Field, encoded_varint, fields, length_field, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_SCALE, _BIAS = "calibration/scale", "calibration/bias"

_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _OPERATOR, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT = 1, 2, 3  # of AttributeProto
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT32 = 1  # of TensorProto.DataType
_VALUE_NAME = 1  # of ValueInfoProto

_PLAIN_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}


def calibrate_graph(source: str | Path, target: str | Path, scale: Sequence[float], bias: Sequence[float]) -> None:
    """Write `source` with its logits scaled and shifted; everything else stays as it is, byte for byte.

    Args:
        source: an ONNX file whose first output is a `Sigmoid` over L logits in float32.
        target: where to write; may be `source`. It appears whole or not at all.
        scale: (L,), above 0.
        bias: (L,).

    Raises:
        ContractError: if the file is not ONNX, or does not end that way.
        DataError: if the target cannot be written.
    """
    scales, biases = np.array(scale, np.float32), np.array(bias, np.float32)
    _rewrite(source, target, lambda graph: graph.calibrated(source, scales, biases))


def write_logits_model(source: str | Path, target: str | Path) -> None:
    """Write `source` with its last sigmoid left out: its first output are logits, which no rounding near 1 cuts off.

    Args:
        source: as for `calibrate_graph`.
        target: where to write.

    Raises:
        ContractError: as `calibrate_graph`.
        DataError: as `calibrate_graph`.
    """
    _rewrite(source, target, lambda graph: graph.without_sigmoid(source))


def _rewrite(source: str | Path, target: str | Path, change: Callable[[_Graph], bytes]) -> None:
    """Write a model with another graph message; everything else as it is."""
    with reading(source) as file:
        outer = read_fields(file)
        payloads = []
        for field in outer:
            file.seek(field.value if field.number == GRAPH else field.start)
            payloads.append(file.read(field.stop - file.tell()))
    # A message that is there twice is merged by every parser, its lists one behind the other.
    message = b"".join(data for field, data in zip(outer, payloads, strict=True) if field.number == GRAPH)
    changed = change(_Graph.parse(message))
    rest = [data for field, data in zip(outer, payloads, strict=True) if field.number != GRAPH]
    with write_errors(target), atomic_file(target) as out:
        for part in (*rest[:1], length_field(GRAPH, changed), *rest[1:]):
            out.write(part)


@dataclass(frozen=True)
class _Node:
    """One operation: where it is in the graph's message, and what it says."""

    field: Field
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, float]


@dataclass(frozen=True)
class _Graph:
    """A GraphProto, taken apart as far as needed."""

    message: bytes
    fields: list[Field]
    nodes: list[_Node]
    initializers: dict[str, Field]
    outputs: list[str]

    @classmethod
    def parse(cls, message: bytes) -> _Graph:
        parts = list(fields(BytesIO(message), 0, len(message)))
        body = {number: [f for f in parts if f.number == number] for number in (_NODE, _INITIALIZER, _OUTPUT)}
        return cls(
            message,
            parts,
            [_node(message, field) for field in body[_NODE]],
            {_text(message, field, _TENSOR_NAME): field for field in body[_INITIALIZER]},
            [_text(message, field, _VALUE_NAME) for field in body[_OUTPUT]],
        )

    def calibrated(self, source: str | Path, scale: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
        """The message with the map in it."""
        last, logits = self._end(source)
        if _SCALE in self.initializers:
            old_scale, old_bias = (self._values(self.initializers[name]) for name in (_SCALE, _BIAS))
            return self._with_tensors({_SCALE: scale * old_scale, _BIAS: scale * old_bias + bias})
        if self._is_linear(logits):
            _, weights, offset = logits.inputs
            old = self._values(self.initializers[weights]).reshape(len(scale), -1)
            shifted = scale * self._values(self.initializers[offset]) + bias
            return self._with_tensors({weights: scale[:, None] * old, offset: shifted})
        return self._with_map_behind(logits, last.inputs[0], scale, bias)

    def without_sigmoid(self, source: str | Path) -> bytes:
        """The message with `Identity` in the place of the last sigmoid."""
        last, _ = self._end(source)
        parts = [
            length_field(_OPERATOR, b"Identity") if part.number == _OPERATOR else self.message[part.start : part.stop]
            for part in self._parts(last.field)
        ]
        return self._joined({last.field.start: length_field(_NODE, b"".join(parts))})

    def _end(self, source: str | Path) -> tuple[_Node, _Node]:
        """The sigmoid that gives the first output, and what gives its logits."""
        producer = {name: node for node in self.nodes for name in node.outputs}
        last = producer.get(self.outputs[0]) if self.outputs else None
        if last is None or last.operator != "Sigmoid" or last.inputs[0] not in producer:
            raise ContractError(
                f"{source} does not end with a sigmoid over its logits, so it cannot be calibrated: calibrate the "
                "float32 model that it was made from, and convert that again"
            )
        return last, producer[last.inputs[0]]

    def _is_linear(self, node: _Node) -> bool:
        """Whether it is x W^T + b with float32 constants that nothing else uses."""
        if node.operator != "Gemm" or len(node.inputs) != 3 or _GEMM_DEFAULTS | node.attributes != _PLAIN_GEMM:
            return False
        constants = node.inputs[1:]
        used = [name for other in self.nodes for name in other.inputs]
        return all(
            used.count(name) == 1 and name in self.initializers and self._is_raw_float32(self.initializers[name])
            for name in constants
        )

    def _is_raw_float32(self, tensor: Field) -> bool:
        parts = {part.number: part for part in self._parts(tensor)}
        if _RAW_DATA not in parts or _DATA_TYPE not in parts:
            return False
        return varint(BytesIO(self.message[parts[_DATA_TYPE].value : parts[_DATA_TYPE].stop])) == _FLOAT32

    def _values(self, tensor: Field) -> NDArray[np.float32]:
        """The numbers of a tensor in raw float32, in one row."""
        raw = next(part for part in self._parts(tensor) if part.number == _RAW_DATA)
        return np.frombuffer(self.message[raw.value : raw.stop], "<f4")

    def _parts(self, field: Field) -> list[Field]:
        return list(fields(BytesIO(self.message), field.value, field.stop))

    def _with_tensors(self, values: dict[str, NDArray[np.float32]]) -> bytes:
        """The message with other numbers in these initialisers."""
        changed = {}
        for name, numbers in values.items():
            raw = length_field(_RAW_DATA, numbers.astype("<f4").tobytes())
            field = self.initializers[name]
            parts = [raw if p.number == _RAW_DATA else self.message[p.start : p.stop] for p in self._parts(field)]
            changed[field.start] = length_field(_INITIALIZER, b"".join(parts))
        return self._joined(changed)

    def _with_map_behind(
        self, node: _Node, logits: str, scale: NDArray[np.float32], bias: NDArray[np.float32]
    ) -> bytes:
        """The message with `Mul` and `Add` behind a node; their result takes the name of its output."""
        raw, scaled = f"{logits}/uncalibrated", f"{logits}/scaled"
        parts = [
            length_field(_NODE_OUTPUT, raw.encode())
            if part.number == _NODE_OUTPUT and self.message[part.value : part.stop] == logits.encode()
            else self.message[part.start : part.stop]
            for part in self._parts(node.field)
        ]
        behind = (
            length_field(_NODE, b"".join(parts))
            + _node_message("Mul", (raw, _SCALE), scaled)
            + _node_message("Add", (scaled, _BIAS), logits)
        )
        constants = _tensor_message(_SCALE, scale) + _tensor_message(_BIAS, bias)
        return self._joined({node.field.start: behind}) + constants

    def _joined(self, changed: dict[int, bytes]) -> bytes:
        return b"".join(changed.get(f.start, self.message[f.start : f.stop]) for f in self.fields)


def _node(message: bytes, field: Field) -> _Node:
    parts = list(fields(BytesIO(message), field.value, field.stop))
    texts = {number: [] for number in (_NODE_INPUT, _NODE_OUTPUT, _OPERATOR)}  # type: dict[int, list[str]]
    for part in parts:
        if part.number in texts:
            texts[part.number].append(message[part.value : part.stop].decode("utf-8", "replace"))
    attributes = dict(_attribute(message, part) for part in parts if part.number == _ATTRIBUTE)
    return _Node(field, "".join(texts[_OPERATOR]), tuple(texts[_NODE_INPUT]), tuple(texts[_NODE_OUTPUT]), attributes)


def _attribute(message: bytes, field: Field) -> tuple[str, float]:
    """Name and value of an attribute that is a number; 0 for one that is not."""
    name, value = "", 0.0
    for part in fields(BytesIO(message), field.value, field.stop):
        data = message[part.value : part.stop]
        if part.number == _ATTRIBUTE_NAME:
            name = data.decode("utf-8", "replace")
        elif part.number == _ATTRIBUTE_FLOAT and part.wire_type == FIXED32:
            value = float(np.frombuffer(data, "<f4")[0])
        elif part.number == _ATTRIBUTE_INT and part.wire_type == VARINT:
            value = float(varint(BytesIO(data)))
    return name, value


def _text(message: bytes, field: Field, number: int) -> str:
    """The first text of this number in a message; empty if there is none."""
    parts = fields(BytesIO(message), field.value, field.stop)
    return next((message[p.value : p.stop].decode("utf-8", "replace") for p in parts if p.number == number), "")


def _node_message(operator: str, inputs: Sequence[str], output: str) -> bytes:
    texts = [(_NODE_INPUT, name) for name in inputs]
    texts += [(_NODE_OUTPUT, output), (_NODE_NAME, f"calibration/{operator}"), (_OPERATOR, operator)]
    return length_field(_NODE, b"".join(length_field(number, text.encode()) for number, text in texts))


def _tensor_message(name: str, values: NDArray[np.float32]) -> bytes:
    """One initialiser (L,) of float32."""
    shape = encoded_varint(_DIMS << 3 | VARINT) + encoded_varint(len(values))
    kind = encoded_varint(_DATA_TYPE << 3 | VARINT) + encoded_varint(_FLOAT32)
    content = length_field(_TENSOR_NAME, name.encode()) + length_field(_RAW_DATA, values.astype("<f4").tobytes())
    return length_field(_INITIALIZER, shape + kind + content)
