"""Code for other GPUs is left out of a CUDA library, and nothing else changes."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from mineral_batch.errors import DataError
from mineral_bench.cli import main
from mineral_bench.gpu.prune import Pruned, prune

from .helpers import write_wheel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: Compute capability -> payload, of one module.
Module = dict[int, bytes]


def entry(capability: int, payload: bytes) -> bytes:
    header = struct.pack("<HHIQIIII", 2, 0x101, 64, len(payload), 0, 0, 0, capability)
    return header.ljust(64, b"\1") + payload


def container(module: Mapping[int, bytes]) -> bytes:
    entries = b"".join(entry(capability, payload) for capability, payload in module.items())
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(entries)) + entries


def library(modules: Sequence[Module]) -> tuple[bytes, list[int]]:
    """An ELF-64 file with code around the section .nv_fatbin, and where in the file each module lies."""
    content, places = bytearray(b"\x7fELF\x02\x01".ljust(64, b"\0") + b"code before"), []
    begin = len(content)
    for module in modules:
        places.append(len(content))
        content += container(module)
    end = len(content)
    names = b"\0.text\0.nv_fatbin_data\0.nv_fatbin\0.shstrtab\0"
    content += b"data behind" + names
    table = len(content)
    for name, offset, size in (
        (b"", 0, 0),
        (b".text", 64, begin - 64),
        (b".nv_fatbin_data", 64, 0),
        (b".nv_fatbin", begin, end - begin),
        (b".shstrtab", table - len(names), len(names)),
    ):
        content += struct.pack("<IIQQQQIIQQ", names.index(name + b"\0"), 1, 0, 0, offset, size, 0, 0, 8, 0)
    struct.pack_into("<Q", content, 40, table)
    struct.pack_into("<HHH", content, 58, 64, 5, 4)
    return bytes(content), places


MODULES: list[Module] = [
    {80: os.urandom(800), 90: os.urandom(160), 120: os.urandom(640)},
    {90: os.urandom(320), 80: os.urandom(240)},
    {120: os.urandom(480)},
    {90: os.urandom(80)},
]


def test_the_code_for_one_gpu_is_kept_where_it_is(tmp_path: Path) -> None:
    before, places = library(MODULES)
    file = tmp_path / "provider.so"
    file.write_bytes(before)
    pruned = prune(file, "9.0")
    after = file.read_bytes()
    assert len(after) == len(before)
    removed = sum(64 + len(MODULES[index][capability]) for index, capability in ((0, 80), (0, 120), (1, 80)))
    assert pruned == Pruned(modules=4, kept=3, removed=removed)
    for place, module in zip(places, MODULES, strict=True):
        # What the driver reads: the header with its length, and the entries that this covers.
        wanted = container({90: module[90]} if 90 in module else module)
        assert after[place : place + len(wanted)] == wanted
    inside = slice(places[0], places[0] + sum(len(container(module)) for module in MODULES))
    assert before[: inside.start] == after[: inside.start]
    assert before[inside.stop :] == after[inside.stop :]
    assert prune(file, "9.0") == Pruned(modules=4, kept=3, removed=0), "again: nothing is left to do"
    assert file.read_bytes() == after


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content, _: content, "no code for compute capability 7.5, only for 8.0, 9.0, 12.0"),
        (lambda content, place: content[:place] + b"XXXXXXXX" + content[place + 8 :], "unknown layout"),
    ],
)
def test_what_cannot_be_pruned_is_left_alone(tmp_path: Path, damage, words: str) -> None:
    content, places = library(MODULES)
    file = tmp_path / "provider.so"
    file.write_bytes(damage(content, places[1]))
    before = file.read_bytes()
    with pytest.raises(DataError, match=words):
        prune(file, "7.5")
    assert file.read_bytes() == before


def test_a_file_without_cuda_code_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "plain.so"
    file.write_bytes(b"#!/bin/sh\n")
    assert prune(file, "9.0") == Pruned(0, 0, 0)
    assert file.read_bytes() == b"#!/bin/sh\n"


def test_the_pieces_are_smaller_by_the_code_of_other_gpus(tmp_path: Path) -> None:
    wheel = tmp_path / "wheels" / "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl"
    content, _ = library([{80: os.urandom(300_000), 90: os.urandom(20_000)}])
    write_wheel(wheel, {"onnxruntime/__init__.py": "", "onnxruntime/capi/libonnxruntime_providers_cuda.so": content})
    sizes = {}
    for name, words in {"all": [], "one": ["--compute-capability", "9.0"]}.items():
        folder = tmp_path / name
        done = CliRunner().invoke(main, ["gpu-pieces", str(folder), "--wheels", str(wheel.parent), *words])
        assert done.exit_code == 0, done.output
        sizes[name] = sum(piece.stat().st_size for piece in folder.iterdir())
    assert sizes["one"] < 30_000 < 300_000 < sizes["all"]
    done = CliRunner().invoke(main, ["gpu-pieces", str(tmp_path), "--compute-capability", "sm_90"])
    assert done.exit_code == 2
    assert "sm_90 is not of the form 9.0" in done.output
