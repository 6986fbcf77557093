"""`mineral-batch info`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from mineral_batch import Measured, ModelContract
from mineral_batch.cli import main
from mineral_batch.model.contract import Familiarity
from mineral_batch.model.onnx_file import write_contract

if TYPE_CHECKING:
    from pathlib import Path


def info(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["info", *map(str, arguments)])


def test_it_shows_every_label_with_its_threshold(model_path: Path, contract: ModelContract) -> None:
    result = info(model_path)
    assert result.exit_code == 0
    for label, threshold in zip(contract.labels, contract.thresholds, strict=True):
        assert any(label in line and f"{threshold:.3f}" in line for line in result.output.splitlines())
    assert "32 x 24" in result.output
    assert "CC0-1.0" in result.output
    assert "never measured" in result.output


def test_accuracy_comes_with_its_definition_data_and_interval(model_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "measured.onnx"
    shutil.copy(model_path, path)
    contract = ModelContract.from_json(info(path, "--json").output)
    measured = Measured(0.7654, "equation 6", "the test split", 321, low=0.0, high=0.8)
    write_contract(path, replace(contract, measured=measured, provenance={"recipe": "decoder"}))
    output = info(path).output
    for said in ("0.7654", "equation 6", "321 images of the test split", "0.0000 to 0.8000", "decoder"):
        assert said in output


def test_json_is_the_whole_contract(model_path: Path, contract: ModelContract) -> None:
    result = info(model_path, "--json")
    assert json.loads(result.output)["labels"] == list(contract.labels)
    assert ModelContract.from_json(result.output) == contract


def test_a_file_that_is_no_model_is_one_line(tmp_path: Path, bare_model_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    for path, said in (
        (tmp_path / "missing.onnx", "no model file"),
        (tmp_path / "text.onnx", "not an ONNX file"),
        (tmp_path, "cannot read"),
        (bare_model_path, "without a contract"),
    ):
        result = info(path)
        assert result.exit_code == 1
        assert said in result.output
        assert len(result.output.splitlines()) == 1


def test_a_plan_shows_the_contract_beside_it_and_a_missing_one_is_named(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"opaque")
    result = info(plan)
    assert result.exit_code == 1
    assert "model.plan.json" in result.output
    assert "ONNX model" not in result.output


def test_calibration_familiarity_and_the_rule_of_the_thresholds_are_shown(
    model_path: Path, tmp_path: Path, contract: ModelContract
) -> None:
    said = "calibrated on 20 images (twenty images), 2026-01-02: expected calibration error 0.0100 before"
    assert said in info(model_path).output
    path = tmp_path / "other.onnx"
    shutil.copy(model_path, path)
    familiarity = Familiarity("distance", "split train", 77)
    rule = {"thresholds": {"rule": "precision=0.9"}}
    write_contract(path, replace(contract, calibration=None, familiarity=familiarity, provenance=rule))
    output = info(path).output
    assert f"mineral-train calibrate {path} MANIFEST.csv --split val" in output
    assert "compared with 77 training images" in output
    assert "with the thresholds of their probabilities (chosen by a precision of 0.9):" in output
