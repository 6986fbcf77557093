"""mAP of artifacts: the same as the metrics', with what each artifact loses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch import InputSpec, Predictor
from mineral_batch.errors import DataError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_batch.types import Failure
from mineral_bench.cli import main
from mineral_bench.studies import accuracy as bench
from mineral_export.verify.samples import LabeledImages, labeled_images

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("agate", "gold", "quartz")


@pytest.fixture
def labels(photos: Path, tmp_path: Path) -> Path:
    rows = [
        f"{path.name},{LABELS[index % 3]},{'test' if index < 8 else 'train'}"
        for index, path in enumerate(sorted(photos.iterdir()))
    ]
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,labels,split", *rows, "gone.jpg,gold,test"]) + "\n", "utf-8")
    return table


def test_the_figure_is_that_of_the_metrics(model_path: Path, photos: Path, labels: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = [
        "accuracy",
        str(labels),
        str(photos),
        str(model_path),
        "--backend",
        "onnx-cpu",
        "--split",
        "test",
    ]
    done = CliRunner().invoke(main, [*command, "--bootstrap", "20", "--json", str(out)])
    assert done.exit_code == 0, done.output
    with Predictor(model_path, backend="onnx-cpu") as predictor:
        results = list(predictor.predict(sorted(photos.iterdir())[:8]))
    scores = np.array([result.probabilities for result in results if not isinstance(result, Failure)])
    truth = np.array([[index % 3 == label for label in range(3)] for index in range(8)])
    expected = mean_average_precision(scores, truth)
    figures = json.loads(out.read_text("utf-8"))["figures"]
    assert figures["photographs"] == 8
    assert figures["artifacts"][0]["mean_ap"]["mean"] == pytest.approx(expected.mean)
    assert figures["artifacts"][0]["mean_ap"]["support"] == [3, 3, 2]
    assert "1 are in the table and not in the folder" in done.output
    assert "equation 6" in done.output


def test_files_of_one_name_are_told_apart_by_their_folders(
    model_path: Path, photos: Path, labels: Path, tmp_path: Path
) -> None:
    others = [tmp_path / "runs" / run / "model.onnx" for run in ("a", "b")]
    for path in others:
        path.parent.mkdir(parents=True)
        path.write_bytes(model_path.read_bytes())
    write_contract(others[1], replace(read_contract(model_path), input=InputSpec(height=32, width=32, resize="crop")))
    out = tmp_path / "found.json"
    words = ["accuracy", labels, photos, *others, model_path, others[0], "--backend", "onnx-cpu", "--bootstrap", 0]
    done = CliRunner().invoke(main, [*map(str, words), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text("utf-8"))["figures"]["artifacts"]
    names = [one["name"].partition(",")[0] for one in found]
    assert names == ["a/model.onnx", "b/model.onnx", "tiny.onnx", "a/model.onnx (2)"]
    assert [one["largest"] > 0 for one in found] == [False, True, False, False], "each with its own answers"
    assert all(f"| {one['name']} |" in done.output for one in found)
    assert {one["interval"] for one in found} == {None}, "without a resample there is none"
    assert found[1]["difference_interval"] is None
    assert "nan" not in done.output


def test_every_backend_that_is_named_is_tried(model_path: Path, photos: Path, labels: Path) -> None:
    words = ["accuracy", labels, photos, model_path, "--backend", "tensorrt", "--backend", "onnx-cpu", "--bootstrap", 0]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "| tiny.onnx, onnx-cpu (CPU, float32) |" in done.output
    assert "Not here: tiny.onnx on tensorrt in auto: " in done.output
    assert "openvino in" not in done.output
    done = CliRunner().invoke(main, [str(word) for word in [*words[:4], "--backend", "abacus"]])
    assert done.exit_code == 1
    assert done.output.startswith("Error: no engine is called 'abacus'; there are: onnx-cuda, ")


def test_a_worse_artifact_loses_and_an_equal_one_does_not() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random((200, 3)) < 0.3
    good = truth * 0.5 + rng.random((200, 3)) * 0.5
    noisy = np.clip(good + rng.normal(0, 0.6, good.shape), 0, 1)
    assert bench.difference_interval(good, good.copy(), truth, 50) == (0.0, 0.0)
    low, high = bench.difference_interval(noisy, good, truth, 50)
    exact = mean_average_precision(noisy, truth).mean - mean_average_precision(good, truth).mean
    assert low <= exact <= high < 0


def test_unreadable_pictures_are_left_out_of_the_truth_too(model_path: Path, photos: Path, tmp_path: Path) -> None:
    from contextlib import ExitStack

    good = sorted(photos.iterdir())[:3]
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"nothing")
    truth = np.eye(4, 3, dtype=bool)
    data = LabeledImages((good[0], broken, good[1], good[2]), truth)
    with ExitStack() as stack:
        artifacts, _ = bench.open_candidates([model_path], [("onnx-cpu", "float32")], stack)
        scored = bench.score(artifacts, data)
    assert scored.unreadable == 1
    assert np.array_equal(scored.truth, truth[[0, 2, 3]])
    assert all(len(scores) == 3 for scores in scored.scores)


def test_mistakes_are_one_line(photos: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("path,labels\n00.jpg,unobtainium\n", "utf-8")
    with pytest.raises(DataError, match="does not know: 'unobtainium'"):
        labeled_images(table, LABELS, photos)
    table.write_text("path,labels\nnowhere.jpg,gold\n", "utf-8")
    with pytest.raises(DataError, match="none of the 1 images"):
        labeled_images(table, LABELS, photos)


def test_an_engine_that_is_not_here_is_named(model_path: Path) -> None:
    from contextlib import ExitStack

    with ExitStack() as stack:
        opened, notes = bench.open_candidates([model_path], [("onnx-cpu", "float32"), ("onnx-cpu", "float16")], stack)
        assert len(opened) == 1
        assert "float16" in notes[0]
    with pytest.raises(DataError, match="no artifact can be opened"):
        bench.open_candidates([model_path], [("onnx-cpu", "float16")], ExitStack())
