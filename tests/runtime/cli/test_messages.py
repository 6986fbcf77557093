"""Messages that a user meets in the first hour: counts that agree, wrong words, where a wrong value came from."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mineral_batch import BackendError, Predictor
from mineral_batch.cli import main

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(model_path: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in a folder with `album/` of 11 images; predict uses the tiny model."""
    assert album == tmp_path / "album"
    monkeypatch.chdir(tmp_path)

    def invoke(*words: str, env: dict[str, str] | None = None) -> Result:
        model = ["-m", str(model_path), "--backend", "onnx-cpu"] if words[0] == "predict" else []
        return CliRunner().invoke(main, [*words, *model], env=env)

    return invoke


def test_the_count_of_predicted_images_leaves_failures_out(run: Any) -> None:
    Path("album/bad.jpg").write_bytes(b"damaged")
    out = run("predict", "album").stdout
    assert out.startswith("11 images predicted in ")
    assert "1 image could not be read" in out


def test_one_unreadable_image_is_one_error_with_its_reason(run: Any) -> None:
    Path("bad.jpg").write_bytes(b"damaged")
    done = run("predict", "bad.jpg")
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Error: the image cannot be read: bad.jpg: " in done.stderr


def test_an_unknown_command_or_option_suggests_the_nearest(run: Any) -> None:
    assert "Did you mean predict?" in CliRunner().invoke(main, ["preduct"]).stderr
    assert "--output" in run("predict", "album", "--outptu", "x").stderr


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        (["evaluate"], "Missing argument 'PREDICTIONS'."),
        (["evaluate", "predictions.csv"], "Missing argument 'LABELS'."),
        (["deliver", "results"], "Missing option '--as'. Choose from:"),
    ],
)
def test_what_is_missing_is_named(words: list[str], missing: str) -> None:
    """The group adds to such a message where a value came from; it must keep the rest."""
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert f"Error: {missing}" in done.stderr


def test_inputs_come_from_the_environment(run: Any) -> None:
    assert run("predict", env={"MINERAL_BATCH_PREDICT_INPUTS": "album"}).exit_code == 0


def test_a_wrong_value_names_its_source(run: Any) -> None:
    name = "MINERAL_BATCH_PREDICT_BATCH_SIZE"
    assert f"environment variable {name}" in run("predict", "album", env={name: "x"}).stderr
    Path("c.toml").write_text('[predict]\nbatch-size = "x"\n')
    assert "(from c.toml, [predict])" in run("predict", "album", "--config", "c.toml").stderr
    assert "(from" not in run("predict", "album", "--batch-size", "x").stderr


def test_evaluate_takes_the_folder_and_says_that_splits_are_mixed(run: Any) -> None:
    run("predict", "album")
    Path("labels.csv").write_text("path,labels,split\nalbum/00.png,gold,train\nalbum/01.png,gold,test\n")
    done = run("evaluate", "results", "labels.csv", "--bootstrap", "0")
    assert done.exit_code == 0, done.output
    assert "all splits of labels.csv are judged together (test, train)" in done.stdout
    assert "judged together" not in run("evaluate", "results", "labels.csv", "--split", "test").stdout


def test_a_closed_predictor_says_so(model_path: Path) -> None:
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        assert "onnx-cpu" in repr(predictor)
        assert predictor.calibrated is predictor.contract.is_calibrated
    assert "closed" in repr(predictor)
    with pytest.raises(BackendError, match="closed"):
        pickle.dumps(predictor)
