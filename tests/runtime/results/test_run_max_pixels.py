"""`--max-pixels`: a run has the rows that a new run with that limit would have, and does only those again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mineral_batch import Failure, Predictor
from mineral_batch.cli import main
from mineral_batch.images.processes.pool import is_supported
from mineral_batch.results.read import read_results
from mineral_batch.results.run import run

from ..conftest import encode, scene

pytest.importorskip("onnxruntime")

SMALL, LARGE = 64 * 48, 128 * 96


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "large.jpg").write_bytes(encode(scene(128, 96), "JPEG"))
    (folder / "small.png").write_bytes(encode(scene(64, 48), "PNG"))
    return folder


def tables(folder: Path) -> list[str]:
    return [(folder / name).read_text() for name in ("predictions.csv", "failures.csv") if (folder / name).exists()]


@pytest.mark.parametrize(
    "processes", [0, pytest.param(1, marks=pytest.mark.skipif(not is_supported(), reason="POSIX"))]
)
def test_only_what_the_limit_changes_is_done_again(
    folder: Path, tmp_path: Path, model_path: Path, processes: int
) -> None:
    target = tmp_path / "out"
    for limit, new, failed in [(LARGE, 2, 0), (SMALL, 1, 1), (SMALL, 0, 1), (SMALL + 1, 1, 1), (LARGE, 1, 0)]:
        with Predictor(model_path, max_pixels=limit, decode_processes=processes) as predictor:
            summary = run(predictor, [folder], target)
            assert (summary.new, summary.failed) == (new, failed), limit
            run(predictor, [folder], fresh := tmp_path / f"fresh {limit}", restart=True)
        assert tables(target) == tables(fresh)


def test_the_command_says_which_option_raises_the_limit(folder: Path, tmp_path: Path, model_path: Path) -> None:
    arguments: list[Any] = ["predict", folder, "-m", model_path, "-o", tmp_path / "out", "--max-pixels", SMALL]
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code == 3
    (failure,) = read_results(tmp_path / "out").failures
    assert failure.reason == f"128 x 96 is over the limit of {SMALL} pixels (--max-pixels; in Python: max_pixels)"
    assert json.loads((tmp_path / "out/run.json").read_text())["options"]["max_pixels"] == SMALL
    assert read_results(tmp_path / "out").max_pixels == SMALL


def test_images_in_memory_obey_it(folder: Path, model_path: Path) -> None:
    with Predictor(model_path, max_pixels=SMALL) as predictor:
        assert isinstance(predictor.predict_one((folder / "large.jpg").read_bytes()), Failure)
        assert isinstance(predictor.predict_one(scene(128, 96)), Failure)
