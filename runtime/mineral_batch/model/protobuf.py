"""The wire format of protobuf, as far as ONNX files need it: fields found by seeking, and fields written.

Every field is `varint(number << 3 | wire type)` and a value. Specification:
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Field:
    """One field: its bytes are [start, stop) of the file, its value [value, stop)."""

    number: int
    wire_type: int
    start: int
    value: int
    stop: int


class MalformedError(Exception):
    """The bytes are not a protobuf message of the expected kind; the text says why."""


def fields(file: BinaryIO, start: int, stop: int) -> Iterator[Field]:
    """Walk the message in bytes [start, stop) of the file by seeking from field to field."""
    while start < stop:
        file.seek(start)
        tag = varint(file)
        value, end = _extent(file, tag & 7)
        if end > stop:
            raise MalformedError(f"cut short: a field ends at byte {end}, the file at {stop}")
        yield Field(tag >> 3, tag & 7, start, value, end)
        start = end


def _extent(file: BinaryIO, wire_type: int) -> tuple[int, int]:
    """Where the value begins and ends whose tag has just been read."""
    at = file.tell()
    if wire_type == VARINT:
        varint(file)
        return at, file.tell()
    if wire_type == LENGTH:
        length = varint(file)
        return file.tell(), file.tell() + length
    if wire_type in (FIXED32, FIXED64):
        return at, at + (4 if wire_type == FIXED32 else 8)
    raise MalformedError(f"no such wire type as {wire_type} at byte {at - 1}")


def varint(file: BinaryIO) -> int:
    """Read a number: seven bits a byte, the lowest first, the high bit set on all but the last; at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise MalformedError(f"cut short at byte {file.tell()}")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise MalformedError(f"a number at byte {file.tell() - 10} has no end")


def encoded_varint(value: int) -> bytes:
    """Write a number, 0 or above, as `varint` reads it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_field(number: int, value: bytes) -> bytes:
    """Write a field of text, bytes or a message, with its tag and length."""
    return encoded_varint(number << 3 | LENGTH) + encoded_varint(len(value)) + value
