"""`mineral-batch audit --features`: look-alikes by what the model sees in photographs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.results.csv import write_csv
from mineral_batch.results.read import read_results

COLORS = ("red", "green", "blue", "white")


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def audited(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two photographs of each color; the first one has the label that the model finds least likely."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for index, color in enumerate(COLORS * 2):
        photo = Image.new("RGB", (48, 36), color)
        photo.putpixel((index, index), (9, 9, 9))
        photo.save(f"photos/{index}.png")
    run("predict", "photos", "-m", model_path, "-o", "results")
    table = read_results("results").predictions
    likely, unlikely = table.labels[table.scores[0].argmax()], table.labels[table.scores[0].argmin()]
    rows = [(path, unlikely if row == 0 else likely) for row, path in enumerate(table.paths)]
    write_csv(Path("labels.csv"), ("path", "labels"), rows)
    return tmp_path / "results"


def first_row(folder: Path) -> dict[str, str]:
    with (folder / "audit.csv").open(encoding="utf-8", newline="") as file:
        return next(row for row in csv.DictReader(file) if row["path"].endswith("0.png"))


def test_the_nearest_photograph_by_features_comes_first(audited: Path) -> None:
    run("audit", "labels.csv", audited, "--features")
    assert first_row(audited)["alike"].split(";")[0] == "photos/4.png", "the other red one"
    assert len(first_row(audited)["alike"].split(";")) == 3


def test_photographs_that_are_gone_are_no_look_alikes(audited: Path) -> None:
    Path("photos/4.png").unlink()
    run("audit", "labels.csv", audited, "--features")
    assert "photos/4.png" not in first_row(audited)["alike"]
    for file in Path("photos").iterdir():
        file.unlink()
    (audited / "review-features.sqlite").unlink()
    run("audit", "labels.csv", audited, "--features")
    assert len(first_row(audited)["alike"].split(";")) == 3, "those by the model's answers"


def test_without_the_model_of_the_run_the_message_names_the_options(
    audited: Path, tmp_path: Path, model_path: Path
) -> None:
    manifest = audited / "run.json"
    manifest.write_text(manifest.read_text().replace('"sha256": "', '"sha256": "0'))
    assert "name it with --model" in run("audit", "labels.csv", audited, "--features", code=1)
    run("audit", "labels.csv", audited, "--features", "--model", model_path)
    assert "are for --features" in run("audit", "labels.csv", audited, "--photos", tmp_path, code=2)
    text = run("audit", "labels.csv", audited, "--features", "--specimen", "folder", code=2)
    assert "leave --specimen out" in text
