"""The studies by which the audit's score, broader names and the answers of specimens were chosen, on small tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.results.csv import write_csv
from mineral_bench.studies import broader_names, label_errors, specimens

LABELS = ("agate", "galena", "quartz", "gold")


@pytest.fixture
def tables(tmp_path: Path) -> tuple[str, str]:
    """Forty images of four labels, of which the model is quite sure; two to a specimen."""
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.01, 0.2, (40, len(LABELS)))
    scores[np.arange(40), np.arange(40) // 2 % 4] = generator.uniform(0.7, 0.99, 40)
    rows = [(f"{i:02}.jpg", LABELS[i // 2 % 4], *values) for i, values in enumerate(scores.tolist())]
    write_csv(tmp_path / "p.csv", ("path", "minerals", *LABELS), rows)
    given = [(f"{i:02}.jpg", LABELS[i // 2 % 4], "val" if i < 20 else "test", f"X-{i // 2}") for i in range(40)]
    write_csv(tmp_path / "l.csv", ("path", "labels", "split", "specimen"), given)
    return str(tmp_path / "p.csv"), str(tmp_path / "l.csv")


def test_changed_labels_are_counted_and_found(tables: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    label_errors.main(*tables)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("40 images with a label")
    assert [line.split()[-2:] for line in lines if "audit" in line] == [["1.00", "1.00"]] * 4


def test_a_change_takes_one_label_and_gives_another() -> None:
    truth = np.eye(4, dtype=bool)[np.arange(20) % 4]
    scores = np.random.default_rng(1).random((20, 4))
    for alike in (False, True):
        after, which = label_errors.changed(scores, truth, 0.25, np.random.default_rng(2), alike=alike)
        assert which.sum() == 5
        assert (after.sum(axis=1) == 1).all()
        assert ((after != truth).any(axis=1) == which).all()


def test_planted_errors_are_counted_by_how_probable_the_suggestion_is() -> None:
    scores = np.array([[0.9, 0.01], [0.2, 0.001], [0.2, 0.001], [0.01, 0.9]])
    after = np.array([[False, True], [False, True], [False, True], [False, True]])
    changed = np.array([True, True, False, False])
    assert label_errors.planted(scores, after, changed) == (1, 1, 2, 1)


def test_a_swap_keeps_how_frequent_labels_are() -> None:
    truth = np.eye(4, dtype=bool)[np.arange(40) % 4]
    after, which = label_errors.swapped(np.random.default_rng(1).random((40, 4)), truth, 0.2, np.random.default_rng(2))
    assert which.sum() == 8
    assert (after.sum(axis=0) == truth.sum(axis=0)).all()
    assert ((after != truth).any(axis=1) == which).all()


def test_the_nearest_images_vote_and_what_they_contradict_comes_first() -> None:
    """Four clusters of features; two images whose labels were swapped are outvoted by their neighbors."""
    truth = np.eye(4, dtype=bool)[np.arange(48) % 4]
    features = 5.0 * truth + np.random.default_rng(0).normal(0, 0.3, truth.shape)
    votes = label_errors.nearest_votes(features, truth)
    assert (votes.argmax(axis=1) == np.arange(48) % 4).all()
    after = truth.copy()
    after[[0, 1]] = truth[[1, 0]]
    which = (after != truth).any(axis=1)
    found = label_errors.WITH_FEATURES["by features: 10 nearest"](np.full(truth.shape, 0.5), features, after)
    assert label_errors.first(found, which) == [2, 2, 2]
    assert set(np.argsort(-found)[:2].tolist()) == {0, 1}


@pytest.mark.slow
def test_the_features_of_a_run_are_computed_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    photos = tmp_path / "photos"
    photos.mkdir()
    colors = {"gold": (220, 180, 40), "azurite": (20, 60, 200), "malachite": (20, 150, 70)}
    rows = []
    for number in range(12):
        label = [*colors][number % 3]
        Image.new("RGB", (64, 48), tuple(value - number for value in colors[label])).save(photos / f"{number}.jpg")
        rows.append((str(photos / f"{number}.jpg"), label))
    write_csv(tmp_path / "labels.csv", ("path", "labels"), rows)
    done = CliRunner().invoke(main, ["predict", str(photos), "-o", str(tmp_path / "run"), "-q"])
    assert done.exit_code == 0, done.output
    label_errors.compare_features(str(tmp_path / "run"), str(tmp_path / "labels.csv"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("12 images with a label")
    assert sum("by answers" in line or "both" in line or "by features" in line for line in lines) == 5
    assert (tmp_path / "run" / "review-features.sqlite").is_file()


def test_unions_are_compared_at_every_level(tables: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    broader_names.main(*tables)
    text = capsys.readouterr().out
    assert "species (1 names)" in text, "quartz covers agate"
    assert "  20 100%" in text


def test_views_and_the_joining_of_specimens(
    tables: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(40):
        Image.new("RGB", (60, 40), (6 * index, 90, 120)).save(tmp_path / f"{index:02}.jpg")
    specimens.make_views(Path(tables[1]), tmp_path / "views", 4)
    assert len(list((tmp_path / "views").glob("*.jpg"))) == 4 * specimens.VIEWS
    specimens.compare(*tables, "val", "test")
    text = capsys.readouterr().out
    assert "val: 10 specimens, 20 photographs, 10 positives" in text
    assert "test: 10 specimens" in text


def test_the_dependence_is_that_of_the_specimens() -> None:
    """Photographs that repeat each other are fitted as one, independent ones as several."""
    generator = np.random.default_rng(3)
    truth = generator.random((400, 3)) < 0.5
    sure = np.where(truth, 0.8, 0.2)
    flipped = np.where(generator.random(truth.shape) < 0.2, 1 - sure, sure)
    assert specimens.fitted([np.stack([row, row, row]) for row in flipped], truth) == pytest.approx(1.0, abs=0.2)
