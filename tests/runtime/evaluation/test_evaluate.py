"""`mineral-batch evaluate` as a user runs it, and the joining of its two tables."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from sklearn.metrics import average_precision_score, f1_score, log_loss

from mineral_batch.cli import main
from mineral_batch.evaluation.evaluate import join
from mineral_batch.minerals import MINERALS
from mineral_batch.model.calibration import Calibration, ProbabilityScores
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import read_contract, write_contract

LABELS = ("agate", "gold", "quartz", "topaz")
COUNT = 60


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def fails(*arguments, code=1):
    """The one line of an error."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert re.fullmatch(r"Error: [^\n]+\n", result.stderr)
    return result.stderr


def write(path, header, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


class World:
    """Sixty pictures, four labels of which topaz is in none, thirty pictures in each of two splits."""

    def __init__(self, folder):
        self.folder = folder
        rng = np.random.default_rng(0)
        self.truth = rng.random((COUNT, 4)) < [0.3, 0.4, 0.5, 0.0]
        self.scores = 1 / (1 + np.exp(1.5 - rng.normal(size=(COUNT, 4)) - 2 * self.truth))
        self.called = self.scores >= 0.5
        self.val = np.arange(COUNT) < COUNT // 2

    @property
    def prediction_rows(self):
        return [
            [f"photos/images/{i:02d}.jpg", names(called), *(f"{v:.9g}" for v in scores)]
            for i, (called, scores) in enumerate(zip(self.called, self.scores, strict=True))
        ]

    @property
    def label_rows(self):
        splits = np.where(self.val, "val", "test")
        return [[f"images/{i:02d}.jpg", names(truth), splits[i]] for i, truth in enumerate(self.truth)]

    def predictions(self, rows=None, header=("path", "minerals", *LABELS)):
        return write(self.folder / "predictions.csv", header, self.prediction_rows if rows is None else rows)

    def labels(self, rows=None, header=("path", "labels", "split")):
        return write(self.folder / "labels.csv", header, self.label_rows if rows is None else rows)

    def model(self, labels=LABELS):
        value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
        path = self.folder / "model.onnx"
        onnx.save(helper.make_model(helper.make_graph([], "g", [value], [value])), path)
        write_contract(path, ModelContract(labels=labels, thresholds=(0.9,) * len(labels), provenance={"by": "me"}))
        return path


def names(row):
    return ";".join(name for name, present in zip(LABELS, row, strict=True) if present)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


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
    assert f"mAP {np.mean(ap):.4f}  equation-6, 95 % interval 0." in out
    assert f"mAP {np.sum(ap) / 4:.4f}  empty-as-zero" in out
    assert re.search(r"mAP 0\.\d{4}  voc2010-envelope", out)
    assert f"OF1 {f1_score(truth.ravel(), called.ravel()):.4f}" in out
    assert "In no image, so not evaluated (1 of 4): topaz." in out


def test_the_first_figures_need_no_technical_term(world):
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    shown = world.truth.any(axis=1)
    right = sum(truth[scores.argmax()] for truth, scores in zip(world.truth, world.scores, strict=True))
    hits, called, labeled = (int(table.sum()) for table in (world.called & world.truth, world.called, world.truth))

    best = f"{100 * right / shown.sum():.0f} % of the images that show one of these 4 labels ({right} of {shown.sum()})"
    assert f"\n\nBest guess: right for {best}.\n" in out
    assert f"\nMinerals named: {100 * hits / called:.0f} % are right ({hits} of {called}).\n" in out
    assert f"\nMinerals labeled: {100 * hits / labeled:.0f} % are found ({hits} of {labeled}).\n" in out
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
    assert "In no image, so not evaluated (2 of 4): quartz, topaz." in out


def test_the_prevalence_wins_nothing_in_the_calibration_error(world):
    out = run(world.predictions(), world.labels(), "--bootstrap", 0).stdout
    assert re.search(r"^ECE +0\.\d{4} +-$", out, re.M)
    assert "0 for the prevalence by definition" in " ".join(out.split())


@pytest.mark.parametrize(("down", "up", "is_explained"), [(0.12, 0.02, True), (0.1, 0.09, False)])
def test_a_lopsided_interval_is_explained(world, monkeypatch, down, up, is_explained):
    mean = np.mean([average_precision_score(world.truth[:, i], world.scores[:, i]) for i in range(3)])
    monkeypatch.setattr("mineral_batch.evaluation.evaluate.bootstrap_interval", lambda *_: (mean - down, mean + up))
    out = " ".join(run(world.predictions(), world.labels()).stdout.split())
    assert f"95 % interval {mean - down:.4f} to {mean + up:.4f}" in out
    assert ("further down than up" in out) == is_explained


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
    assert "Columns that are not labels, ignored: width, seconds.\n" in more
    assert more.replace("Columns that are not labels, ignored: width, seconds.\n", "") == plain


def test_labels_of_ones_own_are_known_by_being_labeled_or_called(world):
    header = ["path", "minerals", "grün, gelb", "Täuschung"]
    predictions = world.predictions([["a.jpg", "Täuschung", 0.9, 0.8], ["b.jpg", "", 0.1, 0.2]], header)
    labels = world.labels([["a.jpg", "grün, gelb"], ["b.jpg", ""]], ["path", "labels"])
    joined = join(predictions, labels)
    assert joined.predictions.labels == ("grün, gelb", "Täuschung")
    assert joined.truth.tolist() == [[True, False], [False, False]]
    assert joined.predictions.called.tolist() == [[False, True], [False, False]]


def test_rounded_probabilities_are_warned_about(world):
    assert "decimals" not in run(world.predictions(), world.labels()).stderr
    world.scores = world.scores.round(2)
    assert "ties move mAP" in run(world.predictions(), world.labels()).stderr


# --- tuning --------------------------------------------------------------------------------------------


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
    assert re.search(r"Wrote thresholds by f1 into .*: F1 rises for 3, is unchanged for 1 minerals", out)
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
    """Thirty images cannot guarantee 99.9 % with 95 % confidence: that needs about 3,000 without a mistake."""
    model = calibrated(world.model())
    words = (world.predictions(), world.labels(), "--split", "val", "--tune", "precision=0.999", "--model", model)
    before = model.read_bytes()
    refused = run(*words, code=1).stderr
    assert "these 30 images guarantee precision 0.999 for no mineral" in refused
    assert "use --force" in refused
    assert model.read_bytes() == before
    run(*words, "--force")
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
    assert "1 labeled images have no prediction: images/" in run(predictions, labels).stdout


def test_a_spreadsheets_byte_order_mark_is_no_part_of_the_header(world):
    labels = world.labels()
    labels.write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    assert "60 images are in both" in run(world.predictions(), labels).stdout


# --- mistakes ------------------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_an_empty_file(world, tmp_path):
    predictions, labels = world.predictions(), world.labels()
    assert "there is no file" in fails(tmp_path / "none.csv", labels)
    (tmp_path / "folder").mkdir()
    assert "cannot read" in fails(predictions, tmp_path / "folder")
    assert fails(labels, tmp_path).endswith(f"in the right order: mineral-batch evaluate {tmp_path} {labels}\n")
    labels.write_bytes(b"")
    assert "has no column path, labels; its first line has nothing" in fails(predictions, labels)


def test_a_missing_column_names_those_there_are(world):
    labels = world.labels(header=("folder", "labels", "split"))
    assert "has no column path; its first line has folder, labels, split" in fails(world.predictions(), labels)
    predictions = world.predictions(header=("path", "called", *LABELS))
    assert "has no column minerals" in fails(predictions, world.labels())
    predictions = world.predictions(header=("path", "minerals", "agate", "agate", "quartz", "topaz"))
    assert "duplicate column names: agate" in fails(predictions, world.labels())


def test_a_path_that_no_file_can_have_is_refused(world):
    rows = world.prediction_rows
    rows[2][0] = "a\0.jpg"
    assert "line 4: a NUL character in the path" in fails(world.predictions(rows), world.labels())


@pytest.mark.parametrize("cell", ["high", "", "nan", "1.5", "-0.1", "inf"])
def test_a_bad_number_is_named_with_its_line_and_column(world, cell):
    rows = world.prediction_rows
    rows[7][4] = cell
    message = fails(world.predictions(rows), world.labels())
    assert f"predictions.csv line 9, column quartz: {cell!r} is not a probability" in message


def test_a_short_row_is_named_with_its_line(world):
    rows = world.prediction_rows
    rows[3] = rows[3][:-1]
    assert "line 5: 5 fields where the header has 6" in fails(world.predictions(rows), world.labels())


def test_a_misspelled_label_is_named_with_the_nearest(world):
    rows = world.label_rows
    rows[2][1] = "gold;qartz"
    message = fails(world.predictions(), world.labels(rows))
    assert "look misspelled: 'qartz' (line 4, did you mean 'quartz'?); correct them" in message
    assert "(and their images): qartz (1)." in run(
        world.predictions(), world.labels(rows), "--ignore-unknown"
    ).stdout.replace("\n", " ")


def test_labels_of_other_minerals_are_counted_and_change_no_figure(world):
    rows = world.label_rows
    figures = run(world.predictions(), world.labels(rows)).stdout.split("\n\n", 1)[1]
    for row, name in zip(rows, ["feldspar", "feldspar", "calcite"], strict=False):
        row[1] = f"{row[1]};{name}"
    text = run(world.predictions(), world.labels(rows)).stdout
    assert text.split("\n\n", 1)[1] == figures
    assert (
        "Labels that the model does not have, counted as other minerals (and their images): feldspar (2), calcite (1)."
    ) in text
    assert "has only labels that were not predicted: 'calcite' (line 2)" in fails(
        world.predictions(), world.labels([[rows[0][0], "calcite", ""]])
    )


@pytest.mark.parametrize("cell", ["?", "Unknown", "quartz;unidentified"])
def test_an_image_whose_label_is_not_known_is_left_out(world, cell):
    rows = world.label_rows
    kept = run(world.predictions(), world.labels(rows[1:])).stdout.split("\n\n", 1)[1]
    rows[0][1] = cell
    text = run(world.predictions(), world.labels(rows)).stdout
    assert text.startswith("59 images are in both")
    assert "left out, as their label says that it is not known: 1." in text
    assert text.split("\n\n", 1)[1] == kept
    assert "belong to other splits" not in text


def test_a_mineral_called_present_must_be_a_column(world):
    rows = world.prediction_rows
    rows[0][1] = "gold;ruby"
    assert "line 2: minerals names ruby, which is not a column" in fails(world.predictions(rows), world.labels())


def test_a_picture_named_twice_is_refused(world):
    rows = world.label_rows
    rows[4][0] = rows[1][0]
    assert "names images/01.jpg twice, in lines 3 and 6" in fails(world.predictions(), world.labels(rows))
    rows[4][0] = "./images/01.jpg"
    assert "are the same path" in fails(world.predictions(), world.labels(rows))


def test_nothing_in_common_shows_an_example_of_each(world):
    labels = world.labels([["elsewhere/a.jpg", "gold", "test"]])
    message = fails(world.predictions(), labels)
    assert "no image is in both tables" in message
    assert "photos/images/00.jpg" in message
    assert "elsewhere/a.jpg" in message
    assert "no image is in both" in fails(world.predictions([]), labels)


def test_a_renamed_folder_and_synonyms_are_matched_and_reported(world):
    rows = [
        [path.replace("images/", "renamed/"), labels.replace("quartz", "Amethyst"), split]
        for path, labels, split in world.label_rows
    ]
    plain = run(world.predictions(), world.labels()).stdout
    renamed = run(world.predictions(), world.labels(rows)).stdout
    assert "Read as: Amethyst = quartz.\n" in renamed
    assert "60 labeled paths matched by file name only" in renamed
    assert "for example renamed/00.jpg is photos/images/00.jpg.\n" in renamed
    assert renamed.split("\n\n", 1)[1] == plain.split("\n\n", 1)[1]


def test_an_unknown_split_lists_those_there_are(world):
    assert "no rows of split 'train'; it has test, val" in fails(
        world.predictions(), world.labels(), "--split", "train"
    )


@pytest.mark.parametrize("value", ["1.5", "-1", "nan"])
def test_a_threshold_is_a_probability(world, value):
    assert "0 to 1" in fails(world.predictions(), world.labels(), f"--thresholds={value}", code=2)


def test_an_output_that_cannot_be_written(world):
    result = run(world.predictions(), world.labels(), "--json", world.folder / "none" / "x.json", code=1)
    assert re.search(r"^Error: cannot write .*x\.json: No such file or directory", result.stderr)


def test_the_36_minerals_are_known_without_being_labeled(world):
    header = ["path", "minerals", *MINERALS]
    predictions = world.predictions([["a.jpg", "", *["0.123456"] * 36]], header)
    joined = join(predictions, world.labels([["a.jpg", "gold", ""]]))
    assert joined.predictions.labels == MINERALS
