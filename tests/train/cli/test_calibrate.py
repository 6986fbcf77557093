"""`mineral-train calibrate`, and the calibration at the end of `fit`."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from mineral_batch import InputSpec, ModelContract, Predictor
from mineral_batch.model.calibration import log_odds
from mineral_batch.model.onnx_file import read_contract, read_graph, write_contract
from mineral_train.cli import main
from mineral_train.data.dataset import PhotoDataset
from mineral_train.data.manifest import read_manifest
from mineral_train.training.calibrate import fold_calibration
from mineral_train.training.checkpoint import load_checkpoint, save_checkpoint
from mineral_train.training.evaluate import evaluate_model

LABELS = ("agate", "gold", "pyrite", "quartz")


def calibrate(*arguments, code=0):
    result = CliRunner().invoke(main, ["calibrate", *map(str, arguments), "--quiet"])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def checkpoint(tmp_path, tiny_model):
    """A checkpoint that nobody has calibrated; `checkpoint(head="group")`."""

    def make(**changes):
        folder = tmp_path / "run"
        model = tiny_model(**changes)
        contract = ModelContract(LABELS, (0.3, 0.5, 0.5, 0.7), InputSpec(64, 64), provenance={"by": "me"})
        save_checkpoint(folder, model, contract, train={"kept": 1})
        return folder

    return make


@pytest.fixture
def onnx_file(tmp_path):
    """The mean color and one linear layer: far too sure of itself."""
    weights = np.concatenate([np.eye(3), [[0, 0, 0]]]).astype(np.float32) / 12
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "w", "b"], ["z"], transB=1),
        helper.make_node("Sigmoid", ["z"], ["probabilities"]),
    ]
    constants = {"w": weights, "b": np.full(4, -9, np.float32), "axes": np.array([1, 2])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    write_contract(path, ModelContract(LABELS, (0.5, 0.6, 0.7, 0.8), InputSpec(16, 16)))
    return path


def scores_of(folder, manifest):
    model, contract = load_checkpoint(folder)
    table = read_manifest(manifest, LABELS)
    return evaluate_model(model, PhotoDataset(table.select("val"), LABELS, contract.input, None))[0]


def answers(path, manifest):
    rows = read_manifest(manifest, LABELS).select("val")
    with Predictor(path) as predictor:
        return np.stack([result.probabilities for result in predictor.predict([row.path for row in rows])])


@pytest.mark.parametrize("head", [{"head": "flatten"}, {"head": "group"}, {"method": "pool"}])
def test_a_checkpoint_answers_calibrated_and_makes_the_same_decisions(checkpoint, colored_manifest, head):
    folder = checkpoint(**head)
    before = scores_of(folder, colored_manifest)
    output = calibrate(folder, colored_manifest).output
    after = scores_of(folder, colored_manifest)
    _, contract = load_checkpoint(folder)
    found = contract.calibration
    expected = np.array(found.scale) * log_odds(before) + found.bias
    np.testing.assert_allclose(log_odds(after), expected, atol=1e-3)
    assert ((after >= contract.thresholds) == (before >= [0.3, 0.5, 0.5, 0.7])).all()
    assert found.images == 12
    assert found.dataset == "split val of manifest.csv"
    assert found.after.log_loss < found.before.log_loss
    assert contract.provenance == {"by": "me"}
    assert "12 images (split val of manifest.csv)" in output
    assert "in none of these images, so the common map is used for them: quartz" in output


def test_an_onnx_file_answers_calibrated_and_keeps_its_form(onnx_file, colored_manifest, tmp_path):
    target = tmp_path / "calibrated.onnx"
    before = answers(onnx_file, colored_manifest)
    calibrate(onnx_file, colored_manifest, "-o", target)
    contract = read_contract(target)
    expected = np.array(contract.calibration.scale) * log_odds(before) + contract.calibration.bias
    np.testing.assert_allclose(log_odds(answers(target, colored_manifest)), expected, atol=1e-3)
    assert read_graph(target) == read_graph(onnx_file)
    assert not read_contract(onnx_file).is_calibrated
    calls = before >= [0.5, 0.6, 0.7, 0.8]
    assert ((answers(target, colored_manifest) >= contract.thresholds) == calls).all()


def test_a_command_that_is_ended_between_graph_and_contract_leaves_the_file_as_it_was(
    onnx_file, colored_manifest, monkeypatch
):
    def ended(*_):
        raise SystemExit(143)

    before = onnx_file.read_bytes()
    files = sorted(path.name for path in onnx_file.parent.iterdir())
    monkeypatch.setattr("mineral_train.training.calibrate.write_contract", ended)
    assert CliRunner().invoke(main, ["calibrate", str(onnx_file), str(colored_manifest)]).exit_code == 143
    assert onnx_file.read_bytes() == before
    assert sorted(path.name for path in onnx_file.parent.iterdir()) == files


def test_a_second_calibration_changes_next_to_nothing(onnx_file, colored_manifest):
    calibrate(onnx_file, colored_manifest)
    once = answers(onnx_file, colored_manifest)
    calibrate(onnx_file, colored_manifest)
    np.testing.assert_allclose(answers(onnx_file, colored_manifest), once, atol=0.05)


def test_thresholds_are_chosen_after_it(onnx_file, colored_manifest):
    out = calibrate(onnx_file, colored_manifest, "--tune", "precision=0.9").output
    contract = read_contract(onnx_file)
    assert contract.provenance["thresholds"]["rule"] == "precision=0.9"
    assert contract.thresholds == (0.9,) * 4  # twelve images promise nothing
    assert "thresholds by precision=0.9; no promise for 4 of 4 minerals" in out


def test_thresholds_that_were_left_at_one_half_stay_there(onnx_file, colored_manifest):
    write_contract(onnx_file, read_contract(onnx_file).with_thresholds([0.5] * 4))
    calibrate(onnx_file, colored_manifest)
    assert read_contract(onnx_file).thresholds == (0.5,) * 4


def test_images_that_cannot_be_read_are_left_out_and_named(onnx_file, colored_manifest, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(colored_manifest.parent, folder)
    rows = read_manifest(folder / "manifest.csv", LABELS).select("val")
    Path(rows[0].path).write_bytes(b"not an image")
    result = calibrate(onnx_file, folder / "manifest.csv", code=3)
    assert f"1 image could not be read and left out, the first: {rows[0].path}" in result.stderr
    assert read_contract(onnx_file).calibration.images == 11


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.onnx", "{manifest}"), "there is no model none.onnx: name a run's folder or an ONNX file"),
        (("{model}", "none.csv"), "there is no file none.csv"),
        (("{model}", "{manifest}", "--tune", "best"), "'best' is not a rule for thresholds"),
        (("{manifest}", "{manifest}"), "not an ONNX file"),
        (("{model}", "{manifest}", "-o", "nowhere/x.onnx"), "cannot write nowhere/x.onnx"),
        (("{model}", "{empty}"), "has no rows of split 'val'"),
        (("{model}", "{negative}"), "calibration needs images with a label and images without"),
    ],
)
def test_mistakes_are_one_line(onnx_file, colored_manifest, tmp_path, arguments, message):
    empty, negative = tmp_path / "empty.csv", tmp_path / "negative.csv"
    empty.write_text("path,labels,split\n0.png,gold,train\n")
    photo = colored_manifest.parent / "0.png"
    negative.write_text(f"path,labels,split\n{photo},,val\n{colored_manifest.parent / '1.png'},,val\n")
    names = {"manifest": colored_manifest, "model": onnx_file, "empty": empty, "negative": negative}
    before = onnx_file.read_bytes()
    code = 2 if "--tune" in arguments else 1
    result = calibrate(*(argument.format(**names) for argument in arguments), code=code)
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert onnx_file.read_bytes() == before


def test_fit_ends_with_a_calibrated_checkpoint(colored_manifest, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    options = "--backbone test_vit --image-size 64 --width 32 --ffn 48 --no-pretrained --epochs 1 --workers 0 --quiet"
    arguments = ["fit", str(colored_manifest), "-o", str(tmp_path / "run"), "--labels", str(labels), *options.split()]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    first = load_checkpoint(tmp_path / "run")[1]
    assert first.calibration.dataset == "validation split of manifest.csv"
    assert first.calibration.images == 12
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert load_checkpoint(tmp_path / "run")[1] == first, "calibrated once"


def test_folding_is_exact_on_a_linear_head(tiny_model, images):
    model = tiny_model(method="pool").eval()
    with torch.inference_mode():
        before = model(images)
    found = replace(_calibration(), scale=(0.5, 2.0, 1.0, 3.0), bias=(0.0, -1.0, 2.0, 0.5))
    fold_calibration(model, found)
    with torch.inference_mode():
        after = model(images)
    torch.testing.assert_close(after, before * torch.tensor(found.scale) + torch.tensor(found.bias))


def _calibration():
    from mineral_batch.model.calibration import Calibration, ProbabilityScores

    scores = ProbabilityScores(0, 0, 0)
    return Calibration("Platt", "val", 1, "2026-01-01", (1,) * 4, (0,) * 4, (0,) * 4, scores, scores)
