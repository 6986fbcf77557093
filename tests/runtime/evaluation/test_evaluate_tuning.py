"""`mineral-batch evaluate --tune`: new thresholds, and when they are refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from sklearn.metrics import average_precision_score, f1_score

from mineral_batch.model.calibration import Calibration, ProbabilityScores
from mineral_batch.model.onnx_file import read_contract, write_contract

from .judging import COUNT, LABELS, fails, run


def test_tune_writes_thresholds_of_higher_f1_into_the_model(world):
    model = world.model()
    out = run(world.predictions(), world.labels(), "--split", "val", "--tune", "f1", "--model", model).stdout
    contract = read_contract(model)
    onnx.checker.check_model(onnx.load(model))
    assert contract.thresholds[3] == 0.9  # topaz is in no photograph
    scores, truth = world.scores[world.val], world.truth[world.val]
    before, after = (
        np.mean([f1_score(truth[:, i], scores[:, i] >= cut[i]) for i in range(3)])
        for cut in ((0.9,) * 3, contract.thresholds)
    )
    assert after > before
    assert f"before  macro-F1 {before:.4f}" in out
    assert f"after   macro-F1 {after:.4f}" in out
    assert re.search(r"Wrote thresholds by f1 into .*: F1 rises for 3 minerals and is unchanged for 1\.", out)
    assert "optimistic" not in out
    assert contract.provenance == {
        "by": "me",
        "thresholds": {"rule": "f1", "labels": "labels.csv", "split": "val", "images": 30},
    }
    held_out = run(world.predictions(), world.labels(), "--split", "test", "--thresholds", model).stdout
    assert f"{contract.thresholds[0]:.4f}" in held_out


def test_a_threshold_stays_where_f1_stays(world):
    model = world.model()
    run(world.predictions(), world.labels(), "--split", "val", "--tune", "f1", "--model", model)
    first = read_contract(model).thresholds
    out = run(world.predictions(), world.labels(), "--split", "val", "--tune", "f1", "--model", model).stdout
    assert "F1 is unchanged for 4 minerals" in out
    assert read_contract(model).thresholds == first


def calibrated(path):
    scores = ProbabilityScores(0, 0, 0)
    record = Calibration("Platt", "val", 30, "2026-01-01", (1,) * 4, (0,) * 4, (1,) * 4, scores, scores)
    write_contract(path, replace(read_contract(path), calibration=record))
    return path


def test_precision_thresholds_name_the_minerals_without_a_promise(world):
    world.truth = np.random.default_rng(1).random((COUNT, 4)) < world.scores
    world.scores[:, 0], world.truth[:, 0] = 0.97, True
    model, target = calibrated(world.model()), world.folder / "report.json"
    arguments = ("--tune", "precision=0.9", "--model", model, "--json", target)
    out = run(world.predictions(), world.labels(), *arguments).stdout
    assert "A precision of at least 0.9 is guaranteed with 95% confidence for 1 of 4 minerals." in out
    assert "gold, quartz, topaz." in " ".join(out.split())
    contract = read_contract(model)
    assert contract.thresholds == pytest.approx((0.05, 0.9, 0.9, 0.9), abs=0.051)
    assert contract.provenance["thresholds"]["rule"] == "precision=0.9"
    assert contract.provenance["thresholds"]["without_promise"] == ["gold", "quartz", "topaz"]
    bound = json.loads(target.read_text("utf-8"))["tuning"]["bound"]
    assert bound["agate"] == pytest.approx(0.05 ** (1 / COUNT), rel=1e-4)
    assert bound["gold"] is None


def test_a_promise_needs_a_calibrated_model(world):
    model = world.model()
    message = fails(world.predictions(), world.labels(), "--tune", "recall=0.9", "--model", model)
    assert f"mineral-train calibrate {model} MANIFEST.csv --split val" in message


@pytest.mark.parametrize("rule", ["precision", "precision=1.5", "f1=0.5", "accuracy=0.9", "model.onnx"])
def test_an_unknown_rule_lists_those_there_are(world, rule):
    message = fails(world.predictions(), world.labels(), "--tune", rule, "--model", world.model(), code=2)
    assert f"'{rule}' is not a rule for thresholds: use f1, precision=0.9 or recall=0.9" in message


def test_tune_needs_a_model_or_a_place_for_a_copy_of_the_starter(world):
    alone = run(world.predictions(), world.labels(), "--tune", "precision=0.9", code=2).stderr
    assert "--tune precision=0.9 needs --model FILE, or -o FILE for a copy of the starter model" in " ".join(
        alone.split()
    )
    for option in (["--model", str(world.model())], ["-o", str(world.folder / "new.onnx")]):
        assert "--model and --output need --tune" in run(world.predictions(), world.labels(), *option, code=2).stderr


def test_thresholds_that_no_image_supports_are_written_only_by_force(world):
    """Thirty images cannot guarantee 99.9% with 95% confidence: that needs about 3,000 without a mistake."""
    model = calibrated(world.model())
    words = (world.predictions(), world.labels(), "--split", "val", "--tune", "precision=0.999", "--model", model)
    before = model.read_bytes()
    refused = run(*words, code=1).stderr
    too_few = "30 images are too few to guarantee a precision of 0.999 for any mineral"
    assert f"Error: {too_few}, so no thresholds were written: label more images, or use --force" in refused
    assert model.read_bytes() == before
    forced = run(*words, "--force").stdout
    assert f"\nWarning: {too_few}; the thresholds rest on the calibration alone.\n" in forced
    assert "agate, gold" not in forced.split(too_few)[1], "nobody needs the names of all labels"
    assert read_contract(model).provenance["thresholds"]["without_promise"] == list(LABELS)


@pytest.mark.parametrize(("split", "is_warned"), [("train", True), ("Training", True), ("val", False)])
def test_figures_of_training_images_are_said_to_be_too_good(world, split, is_warned):
    labels = world.labels([[path, names, split] for path, names, _ in world.label_rows])
    out = run(world.predictions(), labels, "--split", split).stdout
    assert ("are trained on the split" in out) == is_warned


def test_tuned_thresholds_go_into_a_copy_and_leave_the_model_alone(world):
    model, copy = world.model(), world.folder / "tuned.onnx"
    before = model.read_bytes()
    run(world.predictions(), world.labels(), "--tune", "f1", "--model", model, "-o", copy)
    assert model.read_bytes() == before
    assert read_contract(copy).thresholds != read_contract(model).thresholds


def test_record_writes_what_was_measured_into_the_model(world):
    model = world.model()
    before = read_contract(model)
    arguments = ("--split", "test", "--record", model, "--dataset", "thirty made pictures")
    out = run(world.predictions(), world.labels(), *arguments).stdout
    measured = read_contract(model).measured
    scores, truth = world.scores[~world.val], world.truth[~world.val]
    expected = [average_precision_score(truth[:, i], scores[:, i]) for i in range(3)]
    assert measured.mean_ap == pytest.approx(np.mean(expected), rel=1e-5)
    assert list(measured.ap.values()) == [*(pytest.approx(ap, rel=1e-5) for ap in expected), None]
    assert list(measured.support.values()) == [*truth[:, :3].sum(axis=0), 0]
    assert measured.low <= measured.high
    assert (measured.dataset, measured.images, measured.definition) == ("thirty made pictures", 30, "equation-6")
    assert f"Wrote mAP {measured.mean_ap:.4f} on 30 images" in out
    assert replace(read_contract(model), measured=None) == replace(before, measured=None)


def test_tuning_on_the_photographs_to_be_judged_is_said_to_be_optimistic(world):
    assert "optimistic" in run(world.predictions(), world.labels(), "--tune", "f1", "--model", world.model()).stdout
    text = " ".join(run("--help").stdout.split())
    assert "Tune on validation images" in text


def test_a_model_of_other_labels_is_not_tuned(world):
    model = world.model(labels=("agate", "ruby"))
    before = model.read_bytes()
    message = fails(world.predictions(), world.labels(), "--tune", "f1", "--model", model)
    assert "no columns ruby; it has agate, gold, quartz, topaz" in message
    assert model.read_bytes() == before
    assert "without a contract" in fails(
        world.predictions(), world.labels(), "--tune", "f1", "--model", stripped(model)
    )


def stripped(path):
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    return path
