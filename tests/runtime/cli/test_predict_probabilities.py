"""`mineral-batch predict`: probabilities rounded, corrected for prevalences, calibrated or not, and familiarity."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image as PILImage

from mineral_batch import Predictor
from mineral_batch.cli import main
from mineral_batch.model.contract import Familiarity
from mineral_batch.model.onnx_file import write_contract

from .helpers import assert_one_line_error, table

if TYPE_CHECKING:
    from mineral_batch import ModelContract

pytest.importorskip("onnxruntime")


def test_the_columns_best_show_the_two_most_probable_minerals(
    predict: Any, album: Path, tmp_path: Path, contract: ModelContract
) -> None:
    assert predict(album, "--columns", "best").exit_code == 0
    for row in table(tmp_path / "out" / "predictions.csv"):
        values = {label: float(row[label]) for label in contract.labels}
        first, second = sorted(values, key=lambda label: -values[label])[:2]
        assert (row["best"], row["second"], row["calibrated"]) == (first, second, "yes")
        assert float(row["margin"]) == pytest.approx(values[first] - values[second], abs=1e-6)
    assert CliRunner().invoke(main, ["check", str(tmp_path / "out")]).exit_code == 0


def test_probabilities_are_rounded_on_request(
    predict: Any, album: Path, tmp_path: Path, contract: ModelContract
) -> None:
    assert predict(album, "--round", "2", "--format", "jsonl", "--columns", "best").exit_code == 0
    for row in table(tmp_path / "out" / "predictions.csv"):
        assert all(len(row[label]) <= 4 for label in contract.labels)
        assert len(row["margin"]) <= 4, "the difference of two of these"
    assert CliRunner().invoke(main, ["check", str(tmp_path / "out")]).exit_code == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["decimals"] == 2


@pytest.mark.parametrize("source", ["estimate", "file"])
def test_prevalences_correct_the_tables_and_not_the_journal(
    predict: Any, album: Path, tmp_path: Path, contract: ModelContract, source: str
) -> None:
    results = tmp_path / "out"
    assert predict(album).exit_code == 0
    plain = (results / "predictions.csv").read_bytes()
    label = contract.labels[0]
    csv_file = tmp_path / "prevalence.csv"
    csv_file.write_text(f'mineral,prevalence\n"{label}",0.9\n', encoding="utf-8")
    assert predict(album, "--prevalence", source if source == "estimate" else csv_file).exit_code == 0
    assert (results / "predictions.csv").read_bytes() != plain
    record = json.loads((results / "run.json").read_text())["prevalence"]
    assert record["source"] == (source if source == "estimate" else str(csv_file))
    assert set(record["minerals"]) == set(contract.labels)
    assert CliRunner().invoke(main, ["check", str(results)]).exit_code == 0
    assert predict(album).exit_code == 0
    assert (results / "predictions.csv").read_bytes() == plain
    assert json.loads((results / "run.json").read_text())["prevalence"] is None


@pytest.fixture
def uncalibrated(model_path: Path, tmp_path: Path, contract: ModelContract) -> Path:
    path = tmp_path / "uncalibrated.onnx"
    shutil.copy(model_path, path)
    write_contract(path, replace(contract, calibration=None))
    return path


def test_a_model_that_is_not_calibrated_is_used_with_a_warning_and_marked(
    predict: Any, album: Path, tmp_path: Path, uncalibrated: Path
) -> None:
    result = predict(album, "--model", uncalibrated, "--columns", "best", "--quiet")
    assert result.exit_code == 0
    assert f"Warning: {uncalibrated} is not calibrated" in result.stderr
    assert f"mineral-train calibrate {uncalibrated} MANIFEST.csv --split val" in result.stderr
    assert {row["calibrated"] for row in table(tmp_path / "out" / "predictions.csv")} == {"no"}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["model"]["calibration"] is None


def test_prevalences_of_a_model_that_is_not_calibrated_are_refused_before_the_run(
    predict: Any, album: Path, tmp_path: Path, uncalibrated: Path
) -> None:
    result = predict(album, "--model", uncalibrated, "--prevalence", "estimate")
    assert_one_line_error(result, "is not calibrated", "mineral-train calibrate")
    assert not (tmp_path / "out" / "predictions.csv").exists()


@pytest.fixture
def familiar(model_path: Path, tmp_path: Path, contract: ModelContract) -> Path:
    """The tiny model with an output `familiarity`: the mean brightness of the image, 0..1."""
    model = onnx.load(model_path)
    source = model.graph.input[0].name
    model.graph.node.extend(
        [
            onnx.helper.make_node("Cast", [source], ["bright/floats"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Flatten", ["bright/floats"], ["bright/flat"]),
            onnx.helper.make_node("MatMul", ["bright/flat", "bright/share"], ["familiarity"]),
        ]
    )
    share = np.full((int(np.prod(contract.input.shape)), 1), 1 / 255 / np.prod(contract.input.shape), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(share, "bright/share"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("familiarity", onnx.TensorProto.FLOAT, ["N", 1]))
    path = tmp_path / "familiar.onnx"
    onnx.save(model, path)
    write_contract(path, replace(contract, familiarity=Familiarity("brightness", "nothing", 1)))
    return path


def test_familiarity_is_a_column_and_strange_images_are_counted(
    predict: Any, album: Path, tmp_path: Path, familiar: Path
) -> None:
    PILImage.new("RGB", (40, 40)).save(album / "black.png")
    plain = predict(album, model=familiar)
    assert "look like nothing" not in plain.output
    probabilities = (tmp_path / "out" / "predictions.csv").read_text().splitlines()
    result = predict(album, "--columns", "familiarity,best", model=familiar)
    assert result.exit_code == 0, result.output
    assert "1 of 12 images look like nothing the model was trained on (familiarity below 0.05)" in result.output
    rows = {Path(row["path"]).name: row for row in table(tmp_path / "out" / "predictions.csv")}
    assert float(rows["black.png"]["familiarity"]) == 0.0
    assert all(0.05 < float(row["familiarity"]) <= 1 for name, row in rows.items() if name != "black.png")
    assert CliRunner().invoke(main, ["check", str(tmp_path / "out")]).exit_code == 0
    predict(album, model=familiar)
    assert (tmp_path / "out" / "predictions.csv").read_text().splitlines() == probabilities


def test_a_model_without_familiarity_is_refused_with_the_command(predict: Any, album: Path, model_path: Path) -> None:
    result = predict(album, "--columns", "familiarity")
    assert_one_line_error(result, "has no familiarity", f"mineral-train familiarity {model_path} MANIFEST.csv")


def test_openvino_gives_the_same_familiarity(predict: Any, album: Path, familiar: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    found = []
    for options in ({"backend": "onnx-cpu"}, {"backend": "openvino"}):
        precision = ["--restart", "--precision", "float32"] if options["backend"] == "openvino" else []
        result = predict(album, "--columns", "familiarity", *precision, model=familiar, **options)
        assert result.exit_code == 0, result.output
        rows = table(tmp_path / "out" / "predictions.csv")
        found.append({row["path"]: float(row["familiarity"]) for row in rows})
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_an_engine_that_gives_no_familiarity_is_refused(
    predict: Any, album: Path, familiar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setattr("mineral_batch.engines.openvino.OpenVinoEngine.gives_familiarity", False)
    result = predict(album, "--columns", "familiarity", model=familiar, backend="openvino")
    assert_one_line_error(result, "openvino does not give the familiarity of images", "--backend onnx-cpu")


def test_familiarity_from_python(album: Path, familiar: Path) -> None:
    with Predictor(familiar, backend="onnx-cpu", familiarity=True) as predictor:
        for result in predictor.predict([album]):
            assert 0 < result.familiarity <= 1
            assert len(result.probabilities) == len(predictor.contract.labels)
