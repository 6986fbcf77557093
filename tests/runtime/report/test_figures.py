"""The charts' numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mineral_batch.evaluation.curves import judge
from mineral_batch.report import figures
from mineral_batch.results.read import read_results

from .runs import LABELS, write_csv, write_predictions


def test_look_alikes_are_found_instead_of_what_is_missed(run: Path) -> None:
    judged = judge(read_results(run), Path("labels.csv"), "test")
    agate, gold, pyrite, quartz = range(4)
    table = judged.confusion
    assert table[pyrite].tolist() == [0, 1, 1, 0, 0]  # c.jpg: gold instead; missing.jpg: right
    assert table[quartz].tolist() == [0, 0, 0, 1, 1]  # d.jpg: nothing
    assert table[gold, gold] == 1
    assert table[agate, agate] == 2
    assert figures.look_alikes(judged) == [figures.LookAlike("pyrite", "gold", 1, 2)]
    assert [(int(judged.rows[m.image]), m.label) for m in judged.false_alarms] == [(2, gold), (5, agate)]
    assert [(int(judged.rows[m.image]), m.label) for m in judged.missed] == [(3, quartz), (2, pyrite)]


def test_co_occurrence_counts_pairs(run: Path) -> None:
    found = figures.co_occurrence(read_results(run))
    at = {name: i for i, name in enumerate(found.rows)}
    assert found.counts[at["gold"], at["quartz"]] == 1
    assert found.counts[at["gold"], at["gold"]] == 2
    assert found.scale[at["gold"], at["quartz"]] == pytest.approx(1 / 2)
    assert [(row.name, row.value) for row in figures.pairs(found).rows] == [("gold with quartz", 1)]


def test_mineral_with_few_photos_is_last_and_has_no_curve(run: Path) -> None:
    """Gold is found perfectly, but in one photograph; agate imperfectly, in six."""
    rows = [(f"{i}.jpg", (0.9 if i % 3 else 0.2, 0.1, 0.1, 0.1), "agate") for i in range(6)]
    rows += [("gold.jpg", (0.3, 0.9, 0.1, 0.1), "gold"), ("none.jpg", (0.5, 0.1, 0.1, 0.1), "")]
    write_predictions(run / "predictions.csv", rows)
    write_csv(Path("labels.csv"), [["path", "labels"], *([path, labels] for path, _, labels in rows)])
    accuracy = judge(read_results(run), Path("labels.csv"), None)
    chart = figures.average_precision(accuracy)
    assert [(row.name, row.is_faint, row.cells[1]) for row in chart.rows] == [
        ("agate", False, "6"),
        ("gold", True, "1"),
    ]
    assert chart.rows[1].value == 1 > chart.rows[0].value
    for panels in (figures.precision_recall(accuracy), figures.thresholds(read_results(run), accuracy)):
        assert [panel.title for panel in panels.panels] == ["agate"]
        assert "6 photographs" in panels.panels[0].note


def test_steps_enclose_the_average_precision() -> None:
    from mineral_batch.evaluation.curves import precision_recall_curve

    scores, truth = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    x, y = figures.steps(precision_recall_curve(scores, truth))
    assert float(np.sum(np.diff(x) * y[1:])) == pytest.approx((1 + 2 / 3) / 2)


def test_minerals_that_are_never_found(run: Path) -> None:
    found = {row.name for row in figures.counts(read_results(run)).rows}
    assert found | set(figures.never_found(read_results(run))) == set(LABELS)
    write_predictions(run / "predictions.csv", [("a.jpg", (0.9, 0.1, 0.1, 0.1), "")])
    assert figures.never_found(read_results(run)) == ["gold", "pyrite", "quartz"]
