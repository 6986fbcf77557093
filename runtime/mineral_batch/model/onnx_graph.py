"""The graph of an ONNX file, taken apart and written again with changes, without the onnx package."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.errors import ContractError
from mineral_batch.files import atomic_file, write_errors
from mineral_batch.model.onnx_file import GRAPH, read_fields, reading
from mineral_batch.model.protobuf import FIXED32, VARINT, Field, encoded_varint, fields, length_field, varint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

NODE, INITIALIZER, OUTPUT = 1, 5, 12  # of GraphProto
NODE_INPUT, NODE_OUTPUT, NODE_NAME, OPERATOR, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_FLOAT, _ATTRIBUTE_INT = 1, 2, 3  # of AttributeProto
_DIMS, _DATA_TYPE, _TENSOR_NAME, _RAW_DATA = 1, 2, 8, 9  # of TensorProto
_FLOAT32 = 1  # of TensorProto.DataType
_VALUE_NAME, _VALUE_TYPE = 1, 2  # of ValueInfoProto
_TENSOR_TYPE, _ELEMENT_TYPE, _SHAPE, _DIMENSION, _DIM_VALUE, _DIM_NAME = 1, 1, 2, 1, 1, 2  # of TypeProto and its parts


def load_graph(source: str | Path) -> Graph:
    """Read a file's graph.

    Raises:
        ContractError: if the file is not ONNX.
    """
    graph, _ = _read(source)
    return graph


def rewrite(source: str | Path, target: str | Path, change: Callable[[Graph], bytes]) -> None:
    """Write a model with another graph message; everything else stays as it is, byte for byte.

    Args:
        source: an ONNX file.
        target: where to write; may be `source`. It appears whole or not at all.
        change: the graph to the new message.

    Raises:
        ContractError: if the file is not ONNX.
        DataError: if the target cannot be written.
    """
    graph, rest = _read(source)
    changed = change(graph)
    with write_errors(target), atomic_file(target) as out:
        for part in (*rest[:1], length_field(GRAPH, changed), *rest[1:]):
            out.write(part)


def _read(source: str | Path) -> tuple[Graph, list[bytes]]:
    """A file's graph, and its other fields as they are."""
    with reading(source) as file:
        outer = read_fields(file)
        payloads = []
        for field in outer:
            file.seek(field.value if field.number == GRAPH else field.start)
            payloads.append(file.read(field.stop - file.tell()))
    # A message that is there twice is merged by every parser, its lists one behind the other.
    message = b"".join(data for field, data in zip(outer, payloads, strict=True) if field.number == GRAPH)
    rest = [data for field, data in zip(outer, payloads, strict=True) if field.number != GRAPH]
    return Graph.parse(message), rest


@dataclass(frozen=True)
class Node:
    """One operation: where it is in the graph's message, and what it says."""

    field: Field
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, float]


@dataclass(frozen=True)
class Graph:
    """A GraphProto, taken apart as far as needed."""

    message: bytes
    fields: list[Field]
    nodes: list[Node]
    initializers: dict[str, Field]
    outputs: list[str]

    @classmethod
    def parse(cls, message: bytes) -> Graph:
        """Take a message apart."""
        parts = list(fields(BytesIO(message), 0, len(message)))
        body = {number: [f for f in parts if f.number == number] for number in (NODE, INITIALIZER, OUTPUT)}
        return cls(
            message,
            parts,
            [_node(message, field) for field in body[NODE]],
            {_text(message, field, _TENSOR_NAME): field for field in body[INITIALIZER]},
            [_text(message, field, _VALUE_NAME) for field in body[OUTPUT]],
        )

    @cached_property
    def producers(self) -> dict[str, Node]:
        """Name of a value -> the operation that gives it."""
        return {name: node for node in self.nodes for name in node.outputs}

    def end(self, source: str | Path) -> tuple[Node, Node]:
        """The sigmoid that gives the first output, and the operation that gives its logits.

        Raises:
            ContractError: if the graph does not end so.
        """
        last = self.producers.get(self.outputs[0]) if self.outputs else None
        if last is None or last.operator != "Sigmoid" or last.inputs[0] not in self.producers:
            raise ContractError(
                f"{source} does not end with a sigmoid over its logits, so it cannot be calibrated: calibrate the "
                "float32 model that it was made from, and convert that again"
            )
        return last, self.producers[last.inputs[0]]

    def is_raw_float32(self, tensor: Field) -> bool:
        """Whether the numbers of an initializer can be read by `values`."""
        parts = {part.number: part for part in self.parts(tensor)}
        if _RAW_DATA not in parts or _DATA_TYPE not in parts:
            return False
        return varint(BytesIO(self.message[parts[_DATA_TYPE].value : parts[_DATA_TYPE].stop])) == _FLOAT32

    def values(self, tensor: Field) -> NDArray[np.float32]:
        """The numbers of a tensor in raw float32, in one row."""
        raw = next(part for part in self.parts(tensor) if part.number == _RAW_DATA)
        return np.frombuffer(self.message[raw.value : raw.stop], "<f4")

    def parts(self, field: Field) -> list[Field]:
        """The fields of a message in the graph."""
        return list(fields(BytesIO(self.message), field.value, field.stop))

    def with_tensors(self, values: dict[str, NDArray[np.float32]]) -> bytes:
        """The message with other numbers in these initializers."""
        changed = {}
        for name, numbers in values.items():
            raw = length_field(_RAW_DATA, numbers.astype("<f4").tobytes())
            field = self.initializers[name]
            parts = [raw if p.number == _RAW_DATA else self.message[p.start : p.stop] for p in self.parts(field)]
            changed[field.start] = length_field(INITIALIZER, b"".join(parts))
        return self.joined(changed)

    def with_node(self, node: Node, changes: Mapping[tuple[int, str], str], behind: bytes = b"") -> bytes:
        """The message with other texts in one node, and with more fields behind it.

        Args:
            node: the one to change.
            changes: (field of NodeProto, old text) -> new text.
            behind: encoded nodes.
        """
        content = []
        for part in self.parts(node.field):
            old = self.message[part.value : part.stop].decode("utf-8", "replace")
            new = changes.get((part.number, old))
            whole = self.message[part.start : part.stop]
            content.append(whole if new is None else length_field(part.number, new.encode()))
        return self.joined({node.field.start: length_field(NODE, b"".join(content)) + behind})

    def joined(self, changed: Mapping[int, bytes]) -> bytes:
        """The message with other bytes for the fields that start at these places."""
        return b"".join(changed.get(f.start, self.message[f.start : f.stop]) for f in self.fields)


def _node(message: bytes, field: Field) -> Node:
    parts = list(fields(BytesIO(message), field.value, field.stop))
    texts = {number: [] for number in (NODE_INPUT, NODE_OUTPUT, OPERATOR)}  # type: dict[int, list[str]]
    for part in parts:
        if part.number in texts:
            texts[part.number].append(message[part.value : part.stop].decode("utf-8", "replace"))
    attributes = dict(_attribute(message, part) for part in parts if part.number == _ATTRIBUTE)
    return Node(field, "".join(texts[OPERATOR]), tuple(texts[NODE_INPUT]), tuple(texts[NODE_OUTPUT]), attributes)


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


def node_message(operator: str, inputs: Sequence[str], output: str) -> bytes:
    """One operation without attributes, as a field of the graph; it is called like its output."""
    texts = [(NODE_INPUT, name) for name in inputs]
    texts += [(NODE_OUTPUT, output), (NODE_NAME, output), (OPERATOR, operator)]
    return length_field(NODE, b"".join(length_field(number, text.encode()) for number, text in texts))


def tensor_message(name: str, values: NDArray[np.float32]) -> bytes:
    """One initializer of float32, as a field of the graph."""
    shape = b"".join(_number_field(_DIMS, size) for size in values.shape)
    content = length_field(_TENSOR_NAME, name.encode()) + length_field(_RAW_DATA, values.astype("<f4").tobytes())
    return length_field(INITIALIZER, shape + _number_field(_DATA_TYPE, _FLOAT32) + content)


def output_message(name: str, shape: Sequence[str | int]) -> bytes:
    """One output of float32, as a field of the graph."""
    dimensions = [
        length_field(_DIM_NAME, size.encode()) if isinstance(size, str) else _number_field(_DIM_VALUE, size)
        for size in shape
    ]
    shape_message = b"".join(length_field(_DIMENSION, dimension) for dimension in dimensions)
    tensor = _number_field(_ELEMENT_TYPE, _FLOAT32) + length_field(_SHAPE, shape_message)
    kind = length_field(_TENSOR_TYPE, tensor)
    return length_field(OUTPUT, length_field(_VALUE_NAME, name.encode()) + length_field(_VALUE_TYPE, kind))


def _number_field(number: int, value: int) -> bytes:
    return encoded_varint(number << 3 | VARINT) + encoded_varint(value)
