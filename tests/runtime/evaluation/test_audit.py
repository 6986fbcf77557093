"""`mineral-batch audit`: labels that look wrong come first, with what the model suggests."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.cli import main
from mineral_batch.evaluation.audit import suspects, suspicion

LABELS = ("agate", "galena", "quartz")


def write(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    rows = [
        ["path", "minerals", *LABELS],
        ["right.jpg", "galena", 0.05, 0.9, 0.05],
        ["wrong.jpg", "galena", 0.02, 0.95, 0.02],
        ["missed.jpg", "quartz", 0.1, 0.1, 0.97],
        ["empty.jpg", "", 0.01, 0.01, 0.02],
        ["two.jpg", "agate;quartz", 0.9, 0.1, 0.8],
        ["unlabeled.jpg", "agate", 0.9, 0.1, 0.1],
    ]
    write(folder / "predictions.csv", rows)
    labels = [
        ["path", "labels"],
        ["right.jpg", "galena"],
        ["wrong.jpg", "quartz"],
        ["missed.jpg", ""],
        ["empty.jpg", ""],
        ["two.jpg", "agate;quartz"],
    ]
    write(tmp_path / "labels.csv", labels)
    return folder


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["audit", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


def test_labels_that_the_model_does_not_have_are_named_and_kept(results: Path) -> None:
    labels = results.parent / "labels.csv"
    with labels.open("a", encoding="utf-8") as file:
        file.write("unlabeled.jpg,feldspar\n")
    text = run(labels, results)
    assert "counted as other minerals (and their images): feldspar (1)." in text
    rows = {row["path"]: row for row in csv.DictReader((results / "audit.csv").read_text().splitlines())}
    found = rows["unlabeled.jpg"]
    assert (found["labels"], found["suspect"], found["suggested"]) == ("feldspar", "feldspar", "agate")
    labels.write_text("path,labels\nright.jpg,galenna\nwrong.jpg,quartz\n")
    assert "did you mean 'galena'?" in run(labels, results, code=1)
    assert "galenna (1)." in run(labels, results, "--ignore-unknown")


def test_the_worst_labels_come_first_with_a_suggestion_and_look_alikes(results: Path) -> None:
    text = run(results.parent / "labels.csv", results)
    assert "5 labeled images; 2 labels look wrong" in text
    with (results / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["suspect"], row["suggested"]) for row in rows] == [
        ("missed.jpg", "none", "quartz"),
        ("wrong.jpg", "quartz", "galena"),
    ]
    assert float(rows[1]["odds_ratio"]) == pytest.approx((0.95 / 0.05) / (0.02 / 0.98), rel=0.01)
    assert (rows[1]["labels"], rows[1]["probability"], rows[1]["suggested_probability"]) == ("quartz", "0.02", "0.95")
    assert rows[1]["alike"] == "right.jpg"
    assert rows[0]["probability"] == ""
    assert set(rows[0]["alike"].split(";")) == {"wrong.jpg", "two.jpg"}


def test_a_count_keeps_the_worst(results: Path, tmp_path: Path) -> None:
    text = run(results.parent / "labels.csv", results, "--count", 1, "-o", tmp_path / "out.csv")
    assert "2 labels look wrong" in text, "also the one that is not written"
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 2
    assert not (results / "audit.csv").exists()


def test_only_what_looks_wrong_is_listed_with_odds_for_people(results: Path) -> None:
    with (results / "predictions.csv").open("a", encoding="utf-8") as file:
        file.write("doubt.jpg,quartz,0.01,0.3,0.2\nsure.jpg,quartz,0.0000001,0.0000001,0.9999999\n")
    with (results.parent / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("doubt.jpg,quartz\nsure.jpg,galena\n")
    lines = run(results.parent / "labels.csv", results).splitlines()
    assert lines[0].startswith("7 labeled images; 3 labels look wrong (")
    assert re.fullmatch(r"  galena +<1%  quartz\? +>99% +> 1 million x  sure.jpg", lines[1])
    assert re.fullmatch(r"  quartz +2%  galena\? +95% +931 x  wrong.jpg", lines[3])
    assert lines[4] == "Less certain, in the table only: 1"


def test_a_suggestion_that_is_itself_improbable_is_less_certain(results: Path) -> None:
    """Odds of thousands mean little where the model finds neither of the two labels probable."""
    with (results / "predictions.csv").open("a", encoding="utf-8") as file:
        file.write("weak.jpg,,0.00001,0.16,0.00001\n")
    with (results.parent / "labels.csv").open("a", encoding="utf-8") as file:
        file.write("weak.jpg,quartz\n")
    text = run(results.parent / "labels.csv", results)
    assert "2 labels look wrong (another is at least 30% probable, and its odds are 20 times as high" in text
    assert "weak.jpg" not in text
    assert "Less certain, in the table only: 1" in text
    with (results / "audit.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["path"], first["suggested_probability"]) == ("weak.jpg", "0.16"), "the order of the table stays"


def test_a_file_of_ones_own_is_not_replaced(results: Path) -> None:
    labels = results.parent / "labels.csv"
    before = labels.read_bytes()
    assert "is what audit reads: choose another file to write" in run(labels, results, "-o", labels, code=1)
    assert labels.read_bytes() == before
    for _ in range(2):
        run(labels, results)  # an earlier audit is replaced


def test_swapped_arguments_are_said(results: Path) -> None:
    labels = results.parent / "labels.csv"
    assert run(results, labels, code=1).endswith(f"in the right order: mineral-batch audit {labels} {results}\n")


def test_tables_without_a_common_image_are_one_line(results: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.csv", [["path", "labels"], ["x.jpg", "agate"]])
    assert run(other, results, code=1).startswith("Error: no image is in both tables")


probabilities = st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=8)


@given(probabilities, st.integers(0, 2**24))
def test_a_label_that_is_the_most_probable_is_no_suspect(values: list[list[float]], bits: int) -> None:
    scores = np.array(values)
    truth = np.array([[bool(bits >> (3 * row + column) & 1) for column in range(3)] for row in range(len(values))])
    found = suspicion(scores, truth)
    assert np.isfinite(found).all()
    for suspect in suspects(scores, truth, LABELS, 100):
        row = suspect.row
        assert suspect.odds_ratio > 1
        assert not truth[row, LABELS.index(suspect.suggested)]
        assert scores[row, LABELS.index(suspect.suggested)] == scores[row, ~truth[row]].max()
        assert row not in suspect.alike
        assert all(truth[other, LABELS.index(suspect.suggested)] for other in suspect.alike)


def test_flipped_labels_are_found(tmp_path: Path) -> None:
    """Of a calibrated model that is right in most images, one label in ten flipped."""
    rng = np.random.default_rng(0)
    truth = np.eye(6, dtype=bool)[rng.integers(0, 6, 400)]
    scores = 1 / (1 + np.exp(3 - 5 * truth - rng.normal(size=truth.shape)))
    flipped = rng.choice(400, 40, replace=False)
    given = truth.copy()
    given[flipped] = np.roll(truth[flipped], 1, axis=1)
    worst = np.argsort(-suspicion(scores, given))[:40]
    assert len(set(worst.tolist()) & set(flipped.tolist())) >= 36


def test_specimens_are_judged_by_all_their_images(results: Path) -> None:
    rows = [["path", "minerals", *LABELS], ["X-10_1.jpg", "galena", 0.0, 0.9, 0.1], ["X-10_2.jpg", "", 0.0, 0.8, 0.1]]
    write(results / "predictions.csv", [*rows, ["Y-20_1.jpg", "galena", 0.0, 0.7, 0.1]])
    labels = [["path", "labels"], ["X-10_1.jpg", "quartz"], ["X-10_2.jpg", "quartz"], ["Y-20_1.jpg", "galena"]]
    write(results.parent / "labels.csv", labels)
    text = run(results.parent / "labels.csv", results, "--specimen", "catalog")
    assert "2 labeled specimens; 1 label looks wrong" in text
    with (results / "audit.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["specimen"], row["suspect"], row["suggested"], row["alike"]) == ("X-10", "quartz", "galena", "Y-20")
    assert "folder, catalog" in run(results.parent / "labels.csv", results, "--specimen", "nothing.csv", code=1)
