"""Answers at a broader level: when a union of labels is given, and that its probability is right."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.cli import main
from mineral_batch.minerals import MINERALS
from mineral_batch.minerals.levels import SURE, Levels, rolled_up, union_probability
from mineral_batch.minerals.table import LEVELS

LABELS = ("agate", "quartz", "ruby", "sapphire", "elbaite", "schorl", "pyrite", "own label")


def answer(level: str = "class", cut: float = 0.5, **values: float) -> tuple[str, ...]:
    row = np.array([[values.get(label, 0.0) for label in LABELS]])
    return Levels(LABELS, level).answers(row, row >= cut)[0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"agate": 0.9, "pyrite": 0.95}, ("pyrite", "agate")),
        ({"elbaite": 0.45, "schorl": 0.45}, ("tourmaline supergroup",)),  # 1 - 0.55^2 = 0.70
        ({"elbaite": 0.4, "schorl": 0.4}, ()),  # 0.64
        ({"ruby": 0.45, "sapphire": 0.45}, ("corundum",)),
        ({"quartz": 0.45, "ruby": 0.45}, ("Oxides",)),
        ({"quartz": 0.9, "ruby": 0.45, "sapphire": 0.45}, ("quartz", "corundum")),
        ({"ruby": 0.6, "sapphire": 0.45}, ("ruby",)),  # one of them is present: nothing to add
        ({"pyrite": 0.49}, ()),
    ],
)
def test_the_narrowest_name_that_is_sure(values: dict[str, float], expected: tuple[str, ...]) -> None:
    assert answer(**values) == expected


def test_no_answer_is_broader_than_asked_for() -> None:
    assert answer("group", quartz=0.45, ruby=0.45) == ()
    assert answer("species", elbaite=0.45, schorl=0.45) == ()
    assert answer("species", ruby=0.45, sapphire=0.45) == ("corundum",)
    assert answer("variety", ruby=0.45, sapphire=0.45) == ()


probabilities = st.lists(st.floats(0, 1), min_size=len(MINERALS), max_size=len(MINERALS))


@given(probabilities, st.sampled_from(LEVELS), st.floats(0.05, 0.95))
def test_answers_cover_each_label_at_most_once(values: list[float], level: str, cut: float) -> None:
    row = np.array([values])
    levels = Levels(MINERALS, level)
    (names,) = levels.answers(row, row >= cut)
    present = {MINERALS[column] for column in np.flatnonzero(row[0] >= cut)}
    assert present <= set(names)
    added = [union for union in levels.unions if union.name in set(names) - present]
    columns = [column for union in added for column in union.columns]
    assert len(columns) == len(set(columns))
    for union in added:
        assert not present & {MINERALS[column] for column in union.columns}
        assert 1 - np.prod(1 - row[0, list(union.columns)]) >= SURE


@given(probabilities)
def test_rolled_up_probabilities_lie_between_the_largest_and_the_sum(values: list[float]) -> None:
    row = np.array([values])
    for level in LEVELS:
        names, rolled = rolled_up(row, MINERALS, level)
        assert rolled.shape == (1, len(names))
        assert rolled.max() >= row.max() - 1e-12
        assert rolled.sum() <= row.sum() + 1e-9
    np.testing.assert_allclose(rolled_up(row, MINERALS, "variety")[1], row, atol=1e-12)


def test_union_of_certain_and_impossible() -> None:
    np.testing.assert_array_equal(union_probability(np.array([[0.0, 0.0], [1.0, 0.3], [0.5, 0.5]])), [0.0, 1.0, 0.75])


def write(path: Path, rows: list[list[object]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def evaluate(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--bootstrap", "0"])
    return result.exit_code, result.output


def test_evaluate_counts_a_variety_as_its_species_at_that_level(tmp_path: Path) -> None:
    table = [
        ["path", "minerals", "agate", "quartz", "gold"],
        ["a.jpg", "agate", 0.9, 0.2, 0.0],
        ["b.jpg", "quartz", 0.1, 0.8, 0.1],
        ["c.jpg", "gold", 0.0, 0.3, 0.9],
        ["d.jpg", "", 0.45, 0.45, 0.1],
    ]
    predictions = write(tmp_path / "predictions.csv", table)
    truth = [["path", "labels"], ["a.jpg", "agate"], ["b.jpg", "quartz"], ["c.jpg", "gold"], ["d.jpg", "agate"]]
    labels = write(tmp_path / "labels.csv", truth)
    code, text = evaluate(predictions, labels)
    stated = "\n2 images are labeled agate but not quartz; they count as not quartz."
    assert (code, stated in text) == (0, True)
    code, text = evaluate(predictions, labels, "--level", "species", "--json", tmp_path / "out.json")
    assert (code, "read at the level of species: 2 names" in text) == (0, True)
    record = json.loads((tmp_path / "out.json").read_text())
    quartz = next(row for row in record["minerals"] if row["mineral"] == "quartz")
    assert (quartz["support"], quartz["called"], quartz["recall"]) == (3, 3, 1.0), "d.jpg is sure together"
    assert record["level"] == "species"


def test_evaluate_at_a_level_refuses_what_belongs_to_labels(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.csv", [["path", "minerals", "agate", "quartz"], ["a.jpg", "", 0.1, 0.2]])
    labels = write(tmp_path / "l.csv", [["path", "labels"], ["a.jpg", "agate"]])
    assert evaluate(predictions, labels, "--level", "species", "--tune", "f1", "-o", tmp_path / "x.onnx")[0] == 2
    code, text = evaluate(predictions, labels, "--level", "species")
    assert (code, text) == (1, "Error: all labels are quartz at the level of species: nothing is left to tell apart\n")


def test_evaluate_reads_the_users_own_table(tmp_path: Path) -> None:
    table = [
        ["path", "minerals", "grus", "lehm", "erz"],
        ["a.jpg", "grus", 0.9, 0.2, 0.0],
        ["b.jpg", "", 0.1, 0.1, 0.4],
    ]
    predictions = write(tmp_path / "p.csv", table)
    labels = write(tmp_path / "l.csv", [["path", "labels"], ["a.jpg", "lehm"], ["b.jpg", "erz"]])
    own = write(tmp_path / "own.csv", [["name", "species"], ["grus", "boden"], ["lehm", "boden"], ["erz", "erz"]])
    code, text = evaluate(predictions, labels, "--level", "species", "--minerals", own)
    assert (code, "read at the level of species: 2 names" in text) == (0, True), text
    assert evaluate(predictions, labels, "--level", "species", "--minerals", predictions)[0] == 1
