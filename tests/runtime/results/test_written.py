"""No command replaces a file that it did not write itself, or that somebody has edited since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main

if TYPE_CHECKING:
    from pathlib import Path

TABLE = "path,minerals,gold,quartz\na.jpg,quartz,0.1,0.9\nb.jpg,gold,0.8,0.2\n"
LABELS = "path,labels\na.jpg,quartz\nb.jpg,quartz\n"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "predictions.csv").write_text(TABLE)
    (tmp_path / "labels.csv").write_text(LABELS)
    return folder


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    return done.output


def commands(results: Path) -> dict[str, list[object]]:
    labels = results.parent / "labels.csv"
    evaluate = ["evaluate", results, labels, "--bootstrap", 0]
    return {
        "audit": ["audit", labels, results, "-o"],
        "report": ["report", results, "--labels", labels, "--thumbnails", 0, "-o"],
        "evaluate --json": [*evaluate, "--json"],
        "evaluate --csv": [*evaluate, "--csv"],
        "deliver": ["deliver", results, "--join", labels, "--on", "path", "--as", "csv-excel", "-o"],
    }


NAMES = ["audit", "report", "evaluate --json", "evaluate --csv"]


@pytest.mark.parametrize("name", NAMES)
def test_a_foreign_file_stays_and_an_own_one_is_replaced(name: str, results: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("mine\n")
    said = run(*commands(results)[name], path, code=1)
    assert f"{path} already exists and was not written by {name.split(maxsplit=1)[0]}" in said
    assert path.read_text() == "mine\n"
    path.unlink()
    run(*commands(results)[name], path)
    run(*commands(results)[name], path)


@pytest.mark.parametrize("name", NAMES)
def test_an_edited_file_stays(name: str, results: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    run(*commands(results)[name], path)
    for edited in (path.read_text() + "c.jpg,gold\n", path.read_text().replace("quartz", "opal", 1)):
        path.write_text(edited)
        assert "edited since" in run(*commands(results)[name], path, code=1)
        assert path.read_text() == edited


@pytest.mark.parametrize("name", NAMES)
def test_results_that_were_moved_are_still_known(name: str, results: Path) -> None:
    run(*commands(results)[name], results / "out.csv")
    moved = results.rename(results.with_name("moved"))
    run(*commands(moved)[name], moved / "out.csv")


def test_a_page_in_results_that_may_not_be_written_is_known(results: Path, tmp_path: Path) -> None:
    """The page carries its own mark, so nothing need be noted beside the results."""
    words = ["report", results, "--thumbnails", 0, "-o", tmp_path / "page.html"]
    for _ in range(2):
        run(*words)
    assert not (results / "written.json").exists()


def test_an_edited_report_in_a_folder_stays(results: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    words = ["report", results, "--thumbnails", 0, "--folder", "-o", page]
    for _ in range(2):
        run(*words)
    (page / "notes.txt").write_text("mine")
    assert "has files that report did not write, such as notes.txt" in run(*words, code=1)
    (page / "notes.txt").unlink()
    index = page / "index.html"
    index.write_text(edited := index.read_text().replace("</html>", "<p>mine</p></html>"))
    assert "edited since" in run(*words, code=1)
    assert index.read_text() == edited


def test_an_edited_chart_stays(results: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["report", results, "--thumbnails", 0, "--plots", tmp_path / "charts"]
    for _ in range(2):
        assert f"Charts: {tmp_path / 'charts'}" in run(*words)
    chart = min((tmp_path / "charts").glob("*.svg"))
    chart.write_text("mine")
    assert f"{chart} already exists and has been edited since report wrote it" in run(*words, code=1)
    assert chart.read_text() == "mine"


@pytest.mark.parametrize("name", [*NAMES, "deliver"])
def test_what_is_read_is_never_written(name: str, results: Path, tmp_path: Path) -> None:
    """Also by another name of the same file, and if the command wrote it."""
    path = tmp_path / "link.csv"
    path.hardlink_to(tmp_path / "labels.csv")
    assert "choose another file to write" in run(*commands(results)[name], path, code=1)
    assert (tmp_path / "labels.csv").read_text() == LABELS


def test_thresholds_go_into_no_file_but_a_model(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("mine\n")
    said = run("evaluate", results, tmp_path / "labels.csv", "--tune", "f1", "-o", path, code=1)
    assert "already exists and is not an ONNX file" in said
    assert path.read_text() == "mine\n"


def test_a_folder_that_was_moved_still_knows_its_files(results: Path, tmp_path: Path) -> None:
    run("evaluate", results, tmp_path / "labels.csv", "--bootstrap", 0, "--csv", results / "out.csv")
    moved = results.rename(tmp_path / "moved")
    command = ["evaluate", moved, tmp_path / "labels.csv", "--bootstrap", 0, "--csv", moved / "out.csv"]
    run(*command)
    (moved / "out.csv").write_text("mine\n")
    assert "has been edited since" in run(*command, code=1)
