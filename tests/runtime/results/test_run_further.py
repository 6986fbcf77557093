"""Pages of a TIFF and images of a HEIC that are not read are counted aloud, on every road and after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main
from mineral_batch.images.processes.pool import is_supported

from ..conftest import can_write, encode, scene

pytest.importorskip("onnxruntime")

LINE = "Not read: 2 files have further pages or images; only the first of each was predicted"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    first, second = scene(), scene(seed=1)
    pages: dict[str, Any] = {"save_all": True, "append_images": [second, second]}
    (folder / "a.tif").write_bytes(encode(first, "TIFF", **pages))
    (folder / "b.tif").write_bytes(encode(first, "TIFF", compression="tiff_lzw", **pages))
    (folder / "one.tif").write_bytes(encode(first, "TIFF"))
    (folder / "animation.gif").write_bytes(encode(first, "GIF", **pages))
    (folder / "animation.png").write_bytes(encode(first, "PNG", **pages))
    (folder / "animation.webp").write_bytes(encode(first, "WEBP", **pages))
    return folder


@pytest.fixture
def command(model_path: Path, tmp_path: Path) -> Any:
    def call(name: str, *arguments: object) -> str:
        words = [str(word) for word in arguments]
        if name == "predict":
            words += ["-o", str(tmp_path / "out"), "-m", str(model_path), "--backend", "onnx-cpu"]
        result = CliRunner().invoke(main, [name, *words])
        assert result.exit_code == 0, result.output
        return result.output

    return call


def counted(tmp_path: Path) -> int:
    record = json.loads((tmp_path / "out/run.json").read_text())
    return int(record["pictures"]["files_with_further_images"])


PROCESSES = (pytest.mark.slow, pytest.mark.skipif(not is_supported(), reason="needs POSIX"))


@pytest.mark.parametrize("processes", [0, pytest.param(1, marks=PROCESSES)])
def test_in_a_run_and_after_a_resume(folder: Path, tmp_path: Path, command: Any, processes: int) -> None:
    options = ("--decode-processes", processes)
    assert LINE in command("predict", folder, *options)
    assert counted(tmp_path) == 2
    (folder / "new.png").write_bytes(encode(scene(seed=2), "PNG"))
    output = command("predict", folder, *options)
    assert "1 image predicted" in output
    assert LINE in output
    assert counted(tmp_path) == 2
    assert LINE in command("predict", folder, *options)  # the tables are not written again


@pytest.mark.slow
def test_in_shards_and_their_merge(folder: Path, tmp_path: Path, command: Any) -> None:
    pytest.importorskip("pyarrow")
    (folder / "old.7z").write_bytes(b"7z")
    for shard in ("1/2", "2/2"):
        command("predict", folder, "--shard", shard, "--piece-images", 2)
    output = command("merge", tmp_path / "out")
    assert LINE in output
    assert "Not read: 1 .7z (unpack them)" in output
    assert counted(tmp_path) == 2
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["not_read"] == {"files": {".7z": 1}, "folders": {}, "other": 0}


def test_a_heic_with_several_images(tmp_path: Path, command: Any) -> None:
    if not can_write("HEIF"):
        pytest.skip("this machine cannot write HEIC")
    several = encode(scene(), "HEIF", save_all=True, append_images=[scene(seed=1)])
    (tmp_path / "burst.heic").write_bytes(several)
    output = command("predict", tmp_path / "burst.heic")
    assert "Not read: 1 file has further pages or images; only the first of each was predicted" in output
