"""What the review page adds to a reviewer's time: keys counted, waits measured in Chromium."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.results.csv import write_csv
from mineral_bench.cli import main
from mineral_bench.studies.review_page import count_keys, keys

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ("agate", "amber", "gold", "quartz", "pyrite")


@pytest.mark.parametrize(
    ("proposed", "wanted", "count"),
    [
        ({"gold"}, {"gold"}, 1),  # Enter
        ({"gold"}, set(), 1),  # 0
        (set(), {"gold"}, 2),  # 1 Enter
        ({"gold"}, {"agate"}, 3),  # 1 2 Enter
        (set(), {"amber"}, 4),  # a m Enter Enter
        (set(), {"quartz"}, 3),  # q Enter Enter
        (set(), {"topaz"}, 8),  # a new label: its letters, Enter twice, Enter
    ],
)
def test_keys_are_those_that_the_page_takes(proposed: set[str], wanted: set[str], count: int) -> None:
    assert keys(proposed, wanted, ("gold", "agate"), LABELS) == count


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    rows = []
    for number in range(5):
        path = f"{number}.jpg"
        Image.new("RGB", (64, 48), (40 * number, 9, 9)).save(tmp_path / path)
        rows.append((path, "gold" if number < 3 else "", 0.1, 0.2, 0.9 - number / 10, 0.0, 0.05))
    write_csv(folder / "predictions.csv", ("path", "minerals", *LABELS), rows)
    (folder / "run.json").write_text("{}")
    write_csv(tmp_path / "labels.csv", ("path", "labels"), [("0.jpg", "gold"), ("1.jpg", "agate"), ("3.jpg", "")])
    return folder


def test_keys_of_the_three_modes(results: Path) -> None:
    found = count_keys(results, results.parent / "labels.csv", None)
    assert (found.single, found.mistakes) == ((1, 3, 1), (1, 1, 1))
    assert (found.in_grid, found.grid) == (2, 1.0)  # one click, and a key for the page


@pytest.mark.slow
def test_the_wait_is_measured_and_nothing_is_decided(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("playwright", reason="needs the package playwright")
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    if shutil.which("chromium") is None and shutil.which("chromium-browser") is None:
        pytest.skip("needs chromium on the PATH")
    arguments = ["review-page", str(results), "--photos", str(tmp_path), "--count", "4", "--pause", "0"]
    done = CliRunner().invoke(main, [*arguments, "--labels", str(tmp_path / "labels.csv"), "--thinking", "3"])
    assert done.exit_code == 0, done.output
    assert "| one by one | 1.67 |" in done.output
    assert not (results / "review.sqlite").exists()
    assert np.isfinite(float(done.output.split("| 4 |")[1].split("|")[0]))
