"""What the GPU run brings along, in pieces, and the rehearsal of their deliveries."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from mineral_batch.errors import DataError
from mineral_bench.cli import main
from mineral_bench.gpu import pieces

from .helpers import write_wheel

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Two wheels; one has files that no stage uses."""
    folder = tmp_path / "wheels"
    noise = "# " + os.urandom(9000).hex()
    content = {
        "onnxruntime/__init__.py": noise,
        "onnxruntime/capi/libonnxruntime_providers_cuda.so": noise,
        "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": noise,
        "onnxruntime/transformers/optimizer.py": noise,
    }
    write_wheel(folder / "onnxruntime_gpu-1.31.1-cp312-cp312-manylinux_2_28_x86_64.whl", content)
    write_wheel(folder / "flatbuffers-25-py3-none-any.whl", {"flatbuffers/__init__.py": "HERE = True"})
    return folder


def run(*words: object) -> Any:
    return CliRunner().invoke(main, ["gpu-pieces", *map(str, words)])


def test_pieces_are_small_enough_and_the_rehearsal_joins_them(wheels: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "pieces", "--wheels", wheels, "--piece-mb", 0.003)
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "pieces").iterdir())
    assert len(files) > 2
    assert [file.name for file in files] == [f"packages.tar.xz.part{index:02}" for index in range(len(files))]
    assert all(file.stat().st_size <= 3000 for file in files)
    assert f"delivery {len(files)} of {len(files)}: {files[-1].name}" in done.output
    assert "rehearsed: joined and unpacked, with flatbuffers, onnxruntime\n" in done.output


def test_the_commands_that_are_printed_keep_every_piece(wheels: Path, tmp_path: Path) -> None:
    """Played in a shell: each delivery replaces the one before."""
    done = run(tmp_path / "pieces", "--wheels", wheels, "--piece-mb", 0.003)
    commands = [line for line in done.output.splitlines() if line.startswith("mkdir")]
    files = sorted((tmp_path / "pieces").iterdir())
    assert len(commands) == len(files)
    checkout, kept = tmp_path / "checkout", tmp_path / "kept"
    for file, command in zip(files, commands, strict=True):
        delivered = checkout / "pieces"
        delivered.mkdir(parents=True)
        file.rename(delivered / file.name)
        played = command.replace("/var/tmp/pieces", str(kept))
        subprocess.run(["bash", "-ec", played], cwd=checkout, check=True, capture_output=True)
        (delivered / file.name).unlink()
        delivered.rmdir()
    assert sorted(path.name for path in kept.iterdir()) == [file.name for file in files]
    assert re.search(
        r"^python benchmarks/gpu\.py --wheels /var/tmp/pieces --out /var/tmp/gpu$", done.output, re.MULTILINE
    )


def test_what_no_stage_uses_is_left_out(wheels: Path, tmp_path: Path) -> None:
    made = pieces.pack(wheels.glob("*.whl"), tmp_path / "pieces")
    whole = tmp_path / "whole.tar.xz"
    whole.write_bytes(b"".join(piece.path.read_bytes() for piece in made))
    listed = subprocess.run(["tar", "-tJf", whole], check=True, capture_output=True, text=True).stdout
    assert "libonnxruntime_providers_cuda.so" in listed
    assert "tensorrt" not in listed
    assert "transformers" not in listed


def test_a_damaged_or_missing_piece_is_found_by_the_rehearsal(wheels: Path, tmp_path: Path) -> None:
    made = pieces.pack(wheels.glob("*.whl"), tmp_path / "pieces", 3000)
    with pytest.raises(DataError, match="cannot be joined"):
        pieces.rehearse(made[:-1], lambda _: None)
    with pytest.raises(DataError, match="is damaged"):
        pieces.rehearse([replace(made[0], sha256="0" * 64), *made[1:]], lambda _: None)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run(tmp_path / "pieces", "--wheels", tmp_path / "empty")
    assert (done.exit_code, done.output.splitlines()[-1]) == (1, "Error: there is no wheel to pack")
