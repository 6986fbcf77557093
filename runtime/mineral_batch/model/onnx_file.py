"""The metadata of an ONNX file, read and replaced, and its nodes, read, with neither `onnx` nor `protobuf` installed.

An ONNX file is one protobuf message, `ModelProto` (onnx/onnx.proto). On the wire that is a sequence of fields,
each `varint(number << 3 | wire type)` and a value; the weights are in one long field, `graph`. To reach
`metadata_props` it is enough to step over the other top-level fields by their lengths, so reading costs a few
hundred bytes whatever the size of the model, and writing copies every other byte as it is.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from mineral_batch.errors import ContractError, DataError
from mineral_batch.files import atomic_file
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.protobuf import LENGTH, VARINT, Field, MalformedError, fields, length_field
from mineral_batch.model.starter import starter_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

#: The metadata key under which the contract travels.
CONTRACT_KEY = "mineral.contract"

#: The number of ModelProto's field `graph`.
GRAPH = 7

# ModelProto's fields and their wire types: anything else means that the file is not an ONNX model.
_OPSET_IMPORT, _METADATA_PROPS = 8, 14
_MODEL_FIELDS = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), LENGTH)
_FIRST_BYTE = b"\x08"  # ModelProto begins with the varint ir_version, as every writer of ONNX writes it
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_NODE, _OUTPUT = 1, 12  # of GraphProto
_NODE_INPUT, _NODE_OUTPUT, _OPERATOR = 1, 2, 4  # of NodeProto
_VALUE_NAME = 1  # of ValueInfoProto
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Node:
    """One operation of a graph: its name, and the names of what it takes and gives."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_contract(path: str | Path) -> ModelContract:
    """The contract inside an ONNX file.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX, has no contract, or has a bad one.
    """
    text = read_metadata(path).get(CONTRACT_KEY)
    if text is None:
        raise ContractError(
            f"{path} is an ONNX file without a contract (labels, thresholds, input size): "
            f"make it with `mineral-export onnx`, which embeds one"
        )
    try:
        return ModelContract.from_json(text)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None


def write_contract(path: str | Path, contract: ModelContract) -> None:
    """Put a contract into an ONNX file, in place of the one it has; see `write_metadata`."""
    write_metadata(path, {CONTRACT_KEY: contract.to_json()})


def require_model_or_nothing(target: Path) -> None:
    """Check that a model may be written to `target`: no file is there, or an ONNX file by its name or content.

    Raises:
        DataError: if another file, of photographs or labels, would be replaced.
    """
    try:
        if target.suffix == ".onnx" or not target.is_file():  # a damaged model may be replaced
            return
        read_metadata(target)
    except OSError:
        return  # a name that is too long: said where it is written
    except ContractError:
        raise DataError(f"{target} already exists and is not an ONNX file: move it, or choose another file") from None


def read_metadata(path: str | Path) -> dict[str, str]:
    """`metadata_props` of an ONNX file; the graph is stepped over, not read.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX.
    """
    with reading(path) as file:
        return dict(_entry(file, field) for field in read_fields(file) if field.number == _METADATA_PROPS)


def write_metadata(path: str | Path, entries: Mapping[str, str]) -> None:
    """Replace or add `entries` in `metadata_props`; other keys and every other byte stay as they are.

    The new file is written beside the old one and takes its place only when it is complete.

    Raises:
        ContractError: when the file is missing, cut short, not ONNX or cannot be written.
    """
    with reading(path) as file:
        kept = [field for field in read_fields(file) if not _is_replaced(file, field, entries)]
        with atomic_file(path) as out:
            for field in kept:
                _copy(file, out.write, field)
            for key, value in entries.items():
                out.write(_encoded_entry(key, value))


def graph_digest(path: str | Path) -> str:
    """SHA-256, in hexadecimal, of everything in an ONNX file but `metadata_props`.

    It stays the same when a contract is written into the file: what the model computes is not touched by that.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX.
    """
    digest = hashlib.sha256()
    with reading(path) as file:
        for field in read_fields(file):
            if field.number != _METADATA_PROPS:
                _copy(file, digest.update, field)
    return digest.hexdigest()


def read_graph(path: str | Path) -> tuple[list[Node], list[str]]:
    """The nodes of an ONNX file's graph and the names of its outputs, both in its order; weights are stepped over.

    Raises:
        ContractError: when the file is missing, cut short or not ONNX.
    """
    nodes, outputs = [], []
    with reading(path) as file:
        for graph in [field for field in read_fields(file) if field.number == GRAPH]:
            for field in fields(file, graph.value, graph.stop):
                if field.number == _NODE:
                    nodes.append(_node(file, field))
                elif field.number == _OUTPUT:
                    outputs += _texts(file, field, _VALUE_NAME)[:1]
    return nodes, outputs


def with_outputs(path: str | Path, names: Sequence[str]) -> bytes:
    """The content of an ONNX file whose graph gives more of its values as outputs, behind those that it has.

    A message that is there twice is merged by every parser, its lists one behind the other (see the specification,
    "Last One Wins"): so a second graph of nothing but outputs, behind the first, is enough.

    Raises:
        ContractError: when the file is missing or cannot be read.
    """
    added = b"".join(length_field(_OUTPUT, length_field(_VALUE_NAME, name.encode())) for name in names)
    with reading(path) as file:
        return file.read() + length_field(GRAPH, added)


def _node(file: BinaryIO, field: Field) -> Node:
    inputs, outputs = (tuple(_texts(file, field, number)) for number in (_NODE_INPUT, _NODE_OUTPUT))
    return Node("".join(_texts(file, field, _OPERATOR)), inputs, outputs)


def _texts(file: BinaryIO, field: Field, number: int) -> list[str]:
    """The texts in one field of a message."""
    file.seek(field.value)
    message = file.read(field.stop - field.value)
    parts = fields(BytesIO(message), 0, len(message))
    return [message[part.value : part.stop].decode("utf-8", "replace") for part in parts if part.number == number]


@contextmanager
def reading(path: str | Path) -> Iterator[BinaryIO]:
    """Open a model file; whatever is wrong with it becomes one line that names it.

    Raises:
        ContractError: when it is missing, cut short or not ONNX, or cannot be read or written.
    """
    try:
        with Path(path).open("rb") as file:
            begins_well = file.read(1) == _FIRST_BYTE
            file.seek(0)
            yield file
    except FileNotFoundError:
        starter = f"; the model that comes with the package is {starter_path()}" * ("starter" in Path(path).name)
        raise ContractError(f"there is no model file {path}{starter}") from None
    except MalformedError as error:
        if not begins_well:
            raise ContractError(f"{path} is not an ONNX file: give a model written by mineral-export onnx") from None
        raise ContractError(f"{path} is not a complete ONNX model ({error}): copy or export it again") from None
    except OSError as error:
        raise ContractError(f"cannot read or write the model file {path}: {error.strerror or error}") from None


def read_fields(file: BinaryIO) -> list[Field]:
    """Find the top-level fields, checked to be those of a whole ModelProto."""
    found = list(fields(file, 0, file.seek(0, os.SEEK_END)))
    for field in found:
        if _MODEL_FIELDS.get(field.number) != field.wire_type:
            raise MalformedError(f"field {field.number} at byte {field.start} is not part of one")
    for number, name in ((GRAPH, "graph"), (_OPSET_IMPORT, "opset_import")):
        if all(field.number != number for field in found):
            raise MalformedError(f"it has no {name}")
    return found


def _entry(file: BinaryIO, field: Field) -> tuple[str, str]:
    """Key and value of one StringStringEntryProto; a missing one is empty text, as protobuf has it."""
    file.seek(field.value)
    message = file.read(field.stop - field.value)
    parts = {part.number: message[part.value : part.stop] for part in fields(BytesIO(message), 0, len(message))}
    try:
        return parts.get(_KEY, b"").decode(), parts.get(_VALUE, b"").decode()
    except UnicodeDecodeError:
        raise MalformedError(f"the metadata at byte {field.start} is not UTF-8") from None


def _encoded_entry(key: str, value: str) -> bytes:
    """One `metadata_props` field with its tag and length."""
    message = length_field(_KEY, key.encode()) + length_field(_VALUE, value.encode())
    return length_field(_METADATA_PROPS, message)


def _is_replaced(file: BinaryIO, field: Field, entries: Mapping[str, str]) -> bool:
    return field.number == _METADATA_PROPS and _entry(file, field)[0] in entries


def _copy(source: BinaryIO, write: Callable[[bytes], object], field: Field) -> None:
    """Hand on the field's bytes, tag included, piece by piece."""
    source.seek(field.start)
    left = field.stop - field.start
    while left:
        chunk = source.read(min(left, _COPY_BYTES))
        if not chunk:
            raise MalformedError("it became shorter while it was read")
        write(chunk)
        left -= len(chunk)
