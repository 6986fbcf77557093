"""`mineral-batch evaluate` as a user runs it, and the joining of its two tables."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, log_loss

from mineral_batch.evaluation.evaluate import join

from .judging import COUNT, LABELS, run

# --- the report ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [None, "val", "test"])
def test_the_printed_figures_are_scikit_learns(world, split):
    rows = {None: world.val | True, "val": world.val, "test": ~world.val}[split]
    scores, truth, called = world.scores[rows], world.truth[rows], world.called[rows]
    out = run(world.predictions(), world.labels(), *(["--split", split] if split else []), "--bootstrap", 50).stdout
    ap = [average_precision_score(truth[:, i], scores[:, i]) for i in range(3)]
    for i in range(3):
        figures = re.search(rf"^{LABELS[i]} +(.+)$", out, re.M)[1].split()
        f1 = f1_score(truth[:, i], called[:, i])
        assert figures[:3] == [f"{ap[i]:.4f}", str(truth[:, i].sum()), str(called[:, i].sum())]
        assert figures[-1] == f"{f1:.4f}"
    assert f"mAP {np.mean(ap):.4f}  equation-6, 95% interval 0." in out
    assert f"mAP {np.sum(ap) / 4:.4f}  empty-as-zero" in out
    assert re.search(r"mAP 0\.\d{4}  voc2010-envelope", out)
    assert f"OF1 {f1_score(truth.ravel(), called.ravel()):.4f}" in out
    never = "Neither labeled nor named in any image, so not in the table (1 of 4): topaz."
    assert (never in out) != bool(re.search(r"^topaz ", out, re.M)), "in the table or in this line, never in both"
    assert (never in out) == (not called[:, 3].any())


def test_the_first_figures_need_no_technical_term(world):
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    shown = world.truth.any(axis=1)
    right = sum(truth[scores.argmax()] for truth, scores in zip(world.truth, world.scores, strict=True))
    hits, called, labeled = (int(table.sum()) for table in (world.called & world.truth, world.called, world.truth))

    best = f"{100 * right / shown.sum():.0f}% of the images that show one of these 4 labels ({right} of {shown.sum()})"
    assert f"\n\nBest guess: right for {best}.\n" in out
    assert f"\nMinerals named: {100 * hits / called:.0f}% are right ({hits} of {called}).\n" in out
    assert f"\nMinerals labeled: {100 * hits / labeled:.0f}% are found ({hits} of {labeled}).\n" in out
    world.truth[:], world.called[:] = False, False
    nothing = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    assert "No image in both tables has a label" in nothing
    assert "Best guess" not in nothing


def test_a_mineral_that_is_neither_labeled_nor_named_is_in_no_row(world):
    """A table of 36 minerals with photographs of five has five rows, and those that are named by mistake."""
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    assert bool(re.search(r"^topaz ", out, re.M)) == bool(world.called[:, 3].any())
    world.called[:, 3], world.called[0, 2] = False, True
    world.truth[:, 2] = False
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    assert not re.search(r"^topaz ", out, re.M)
    assert re.search(r"^quartz +- +0 ", out, re.M)
    assert "Neither labeled nor named in any image, so not in the table (1 of 4): topaz." in out


def test_the_prevalence_wins_nothing_in_the_calibration_error(world):
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    assert re.search(r"^ECE +0\.\d{4} +-$", out, re.M)
    assert "0 for the prevalence by definition" in " ".join(out.split())


@pytest.mark.parametrize(("down", "up", "is_explained"), [(0.12, 0.02, True), (0.1, 0.09, False)])
def test_a_lopsided_interval_is_explained(world, monkeypatch, down, up, is_explained):
    mean = np.mean([average_precision_score(world.truth[:, i], world.scores[:, i]) for i in range(3)])
    monkeypatch.setattr("mineral_batch.evaluation.evaluate.bootstrap_interval", lambda *_: (mean - down, mean + up))
    out = " ".join(run(world.predictions(), world.labels()).stdout.split())
    assert f"95% interval {mean - down:.4f} to {mean + up:.4f}" in out
    assert ("further below than above" in out) == is_explained


def test_json_has_every_figure_with_six_significant_digits(world):
    target = world.folder / "report.json"
    run(world.predictions(), world.labels(), "--json", target, "--bootstrap", 100)
    record = json.loads(target.read_text("utf-8"))
    ap = average_precision_score(world.truth[:, :3], world.scores[:, :3])
    assert record["mean_ap"]["equation-6"] == float(f"{ap:.6g}")
    assert set(record["mean_ap"]) == set(record["definitions"])
    low, high = record["interval_95"]
    assert low < ap < high
    assert record["images"] == COUNT
    assert record["without_positives"] == ["topaz"]
    topaz = record["minerals"][3]
    assert topaz["ap"] == {"equation-6": None, "voc2010-envelope": None, "empty-as-zero": None}
    assert topaz["recall"] is None
    assert [m["support"] for m in record["minerals"]] == world.truth.sum(axis=0).tolist()


def test_calibration_is_printed_beside_always_the_prevalence(world):
    target = world.folder / "report.json"
    out = run(world.predictions(), world.labels(), "--json", target).stdout
    truth = world.truth.ravel()
    loss = log_loss(truth, world.scores.ravel())
    base = log_loss(truth, np.tile(world.truth.mean(axis=0), (COUNT, 1)).ravel())
    assert re.search(rf"^log loss +{loss:.4f} +{base:.4f}$", out, re.M)
    assert "ECE: expected calibration error, 10 equal-width bins over all decisions" in out
    assert f"{world.scores.sum() / COUNT:.2f} by the sum of the probabilities, {truth.sum() / COUNT:.2f} labeled" in out
    record = json.loads(target.read_text("utf-8"))["calibration"]
    assert record["model"]["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert sum(one["decisions"] for one in record["bins"]) == truth.size


def test_csv_has_the_table_per_mineral(world):
    target = world.folder / "table.csv"
    run(world.predictions(), world.labels(), "--csv", target, "--thresholds", 0.25)
    rows = list(csv.DictReader(target.read_text("utf-8").splitlines()))
    assert [row["mineral"] for row in rows] == list(LABELS)
    assert float(rows[1]["ap (equation-6)"]) == pytest.approx(
        average_precision_score(world.truth[:, 1], world.scores[:, 1]), rel=1e-5
    )
    assert rows[3]["ap (equation-6)"] == ""
    assert {row["threshold"] for row in rows} == {"0.25"}


def test_the_minerals_column_decides_unless_thresholds_are_given(world):
    world.called[:] = False
    tables = world.predictions(), world.labels()
    assert "overall    OP 0.0000  OR 0.0000" in run(*tables, "--bootstrap", 0).stdout
    expected = f"OF1 {f1_score(world.truth.ravel(), (world.scores >= 0.3).ravel()):.4f}"
    assert expected in run(*tables, "--bootstrap", 0, "--thresholds", "0.3").stdout
    model = world.model()
    expected = f"OF1 {f1_score(world.truth.ravel(), (world.scores >= 0.9).ravel()):.4f}"
    assert expected in run(*tables, "--bootstrap", 0, "--thresholds", model).stdout


def test_further_columns_that_are_no_labels_are_ignored_and_named(world):
    header = ["path", "minerals", "width", *LABELS, "seconds"]
    rows = [[path, called, 512, *rest, "n/a"] for path, called, *rest in world.prediction_rows]
    plain = run(world.predictions(), world.labels()).stdout
    more = run(world.predictions(rows, header), world.labels()).stdout
    assert "Ignored columns (not labels): width, seconds.\n" in more
    assert more.replace("Ignored columns (not labels): width, seconds.\n", "") == plain


def test_labels_of_ones_own_are_known_by_being_labeled_or_called(world):
    header = ["path", "minerals", "grün, gelb", "Täuschung"]
    predictions = world.predictions([["a.jpg", "Täuschung", 0.9, 0.8], ["b.jpg", "", 0.1, 0.2]], header)
    labels = world.labels([["a.jpg", "grün, gelb"], ["b.jpg", ""]], ["path", "labels"])
    joined = join(predictions, labels)
    assert joined.predictions.labels == ("grün, gelb", "Täuschung")
    assert joined.truth.tolist() == [[True, False], [False, False]]
    assert joined.predictions.called.tolist() == [[False, True], [False, False]]


OWN = (*LABELS[:3], "bornite")  # which the table of minerals does not have, and which no image shows


@pytest.mark.parametrize("extra", [[], ["0.5", "n/a"]], ids=["run.json", "columns"])
def test_a_label_of_the_model_counts_though_no_image_has_it(world, extra):
    """The labels are those of run.json; without it every column of probabilities is one."""
    world.called[:, 3] = False
    header = ["path", "minerals", "familiarity", *OWN, *(["notes"] if extra else [])]
    cells = [extra[i % 2 : i % 2 + 1] for i in range(COUNT)] if extra else [[]] * COUNT
    rows = [
        [path, called, 0.5, *rest, *more]
        for (path, called, *rest), more in zip(world.prediction_rows, cells, strict=True)
    ]
    predictions = world.predictions(rows, header)
    if not extra:
        record = {
            "model": {"labels": OWN, "thresholds": [0.5] * 4},
            "pictures": {"predicted": COUNT, "failed": 0},
            "tables": ["predictions.csv"],
        }
        (world.folder / "run.json").write_text(json.dumps(record), "utf-8")
    out = run(predictions, world.labels(), "--bootstrap", 0).stdout
    ap = [average_precision_score(world.truth[:, i], world.scores[:, i]) for i in range(3)]
    assert f"mAP {np.sum(ap) / 4:.4f}  empty-as-zero" in out
    assert "Neither labeled nor named in any image, so not in the table (1 of 4): bornite." in out
    assert f"Ignored columns (not labels): familiarity{', notes' if extra else ''}.\n" in out


def test_a_column_that_the_table_of_a_run_has_lost_is_missed(world):
    record = {
        "model": {"labels": [*LABELS, "bornite"], "thresholds": [0.5] * 5},
        "pictures": {"predicted": COUNT, "failed": 0},
        "tables": ["predictions.csv"],
    }
    (world.folder / "run.json").write_text(json.dumps(record), "utf-8")
    assert "no columns bornite; it has agate" in run(world.predictions(), world.labels(), code=1).stderr


def test_rounded_probabilities_are_warned_about(world):
    assert "decimals" not in run(world.predictions(), world.labels()).stderr
    world.scores = world.scores.round(2)
    assert "ties move mAP" in run(world.predictions(), world.labels()).stderr


# --- joining -------------------------------------------------------------------------------------------


def test_what_is_in_one_table_only_is_counted(world):
    labels = world.labels([*world.label_rows[5:], *([f"missing/{i}.jpg", "gold", "test"] for i in range(7))])
    out = run(world.predictions(), labels, "--split", "test").stdout
    assert "30 images are in both" in out
    assert "5 predictions have no labels and are ignored." in out
    assert "25 predictions belong to other splits and are ignored." in out
    assert "7 labeled images have no prediction: missing/0.jpg, missing/1.jpg" in out
    assert "missing/4.jpg and 2 more." in out


def test_names_that_are_not_utf8_match_and_are_printed(world):
    predictions, labels = world.predictions(), world.labels()
    for table in (predictions, labels):
        table.write_bytes(table.read_bytes().replace(b"images/59", b"images/\xff59"))
    assert "60 images are in both" in run(predictions, labels).stdout
    predictions.write_bytes(predictions.read_bytes().replace(b"\xff59", b"gone"))
    assert "1 labeled image has no prediction: images/" in run(predictions, labels).stdout


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_header(world):
    labels = world.labels()
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    assert "60 images are in both" in run(world.predictions(), labels).stdout
