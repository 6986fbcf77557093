"""Leave out of a CUDA library what was compiled for other GPUs.

NVIDIA's nvprune does this for object files and static libraries; for a shared library there is no tool. Its section
`.nv_fatbin` holds containers, each with a module compiled for several compute capabilities. A container begins with
(magic, version, bytes of this header, bytes of its entries); each entry with (kind, version, bytes of this header,
bytes of its payload), and 28 bytes after its start the compute capability. The wanted entries move to the front of
their container, whose length then says that nothing follows; the rest is zeroed. No address changes, so the library is
otherwise the same, and xz takes the zeros for nothing.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mineral_batch.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECTION = b".nv_fatbin"
_MAGIC = 0xBA55ED50
_CONTAINER = struct.Struct("<IHHQ")
_ENTRY = struct.Struct("<HHIQ12xI")
_LENGTH_AT = 8  # in a container's header
# Of ELF-64's header and of its section headers.
_ELF = b"\x7fELF\x02\x01"
_TABLE_AT, _TABLE_SHAPE_AT = 40, 58
_SECTION_HEADER = struct.Struct("<I20xQQ24x")


@dataclass(frozen=True)
class Pruned:
    """What was left of a library.

    Attributes:
        modules: containers in it.
        kept: of these, how many hold code for the wanted GPU; the others are as they were.
        removed: bytes of code for other GPUs.
    """

    modules: int
    kept: int
    removed: int


@dataclass(frozen=True)
class _Entry:
    """Code of a module for one GPU: `[start, end)` in the file."""

    start: int
    end: int
    capability: int


def prune(library: Path, capability: str) -> Pruned:
    """Rewrite a shared library in place, for one compute capability.

    Args:
        library: an ELF-64 file; one without CUDA code stays as it is.
        capability: of the GPU, as in `9.0`.

    Raises:
        DataError: if no module in it was compiled for that, or its layout is not the known one. It is then unchanged.
    """
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        modules = [(start, list(_entries(data, start, end))) for start, end in _containers(data, library)]
        wanted = [(start, entries, _of(entries, capability)) for start, entries in modules]
        kept = [one for one in wanted if one[2]]
        if modules and not kept:
            found = sorted({entry.capability for _, entries in modules for entry in entries})
            words = ", ".join(f"{number // 10}.{number % 10}" for number in found)
            raise DataError(f"{library.name} has no code for compute capability {capability}, only for {words}")
        removed = sum(_rewrite(data, start, entries, chosen) for start, entries, chosen in kept)
    return Pruned(len(modules), len(kept), removed)


def _of(entries: list[_Entry], capability: str) -> list[_Entry]:
    return [entry for entry in entries if entry.capability == int(capability.replace(".", ""))]


def _rewrite(data: mmap.mmap, start: int, entries: list[_Entry], chosen: list[_Entry]) -> int:
    """Move the chosen entries of a container to its front; return how many bytes were zeroed."""
    first, end = entries[0].start, entries[-1].end
    content = b"".join(data[entry.start : entry.end] for entry in chosen)
    data[first:end] = content + bytes(end - first - len(content))
    struct.pack_into("<Q", data, start + _LENGTH_AT, len(content))
    return end - first - len(content)


def _containers(data: mmap.mmap, library: Path) -> Iterator[tuple[int, int]]:
    """Yield where each container lies; they follow each other, with zeros between them."""
    position, end = _section(data)
    while position < end:
        if data[position : position + 8] == bytes(8):
            position += 8
            continue
        magic, _, header, length = _CONTAINER.unpack_from(data, position)
        if magic != _MAGIC or position + header + length > end:
            raise DataError(f"{library.name} holds CUDA code in an unknown layout: pack it as it is")
        yield position, position + header + length
        position += header + length


def _entries(data: mmap.mmap, start: int, end: int) -> Iterator[_Entry]:
    position = start + _CONTAINER.unpack_from(data, start)[2]
    while position < end:
        _, _, header, length, capability = _ENTRY.unpack_from(data, position)
        yield _Entry(position, position + header + length, capability)
        position += header + length


def _section(data: mmap.mmap) -> tuple[int, int]:
    """Return where the CUDA code of an ELF-64 file lies; (0, 0) if there is none."""
    if data[: len(_ELF)] != _ELF:
        return 0, 0
    table = int.from_bytes(data[_TABLE_AT : _TABLE_AT + 8], "little")
    size, count, names_at = struct.unpack_from("<HHH", data, _TABLE_SHAPE_AT)
    headers = [_SECTION_HEADER.unpack_from(data, table + size * index) for index in range(count)]
    names = headers[names_at][1] if headers else 0
    for name, offset, length in headers:
        if data[names + name : names + name + len(_SECTION) + 1] == _SECTION + b"\0":
            return offset, offset + length
    return 0, 0
