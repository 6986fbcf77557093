"""Hostile cells in tables: every command gives a right answer, or one line that a terminal can show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main

HEADER, GOOD = "path,minerals,gold,quartz", "a.jpg,quartz,0.1,0.9"
COMMANDS = {
    "report": ["report", "results", "-o", "page.html"],
    "deliver": ["deliver", "results", "--as", "csv-excel", "-o", "d.csv"],
    "folders": ["deliver", "results", "--as", "folders", "-o", "tree"],
    "evaluate": ["evaluate", "results", "labels.csv", "--bootstrap", "0"],
    "audit": ["audit", "labels.csv", "results", "-o", "audit.csv"],
    "review": ["review", "results", "--labels", "labels.csv", "--export", "l.csv"],
}
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("labels.csv").write_text("path,labels\na.jpg,quartz\n", "utf-8")
    Path("results/predictions.csv").write_text(f"{HEADER}\n{GOOD}\n", "utf-8")
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_the_system_refuses_is_an_image_that_is_not_there(command: str, folder: Path) -> None:
    Path("results/predictions.csv").write_text(f"{HEADER}\n{GOOD}\n{'d/' * 3000}x.jpg,gold,0.8,0.1\n", "utf-8")
    done = CliRunner().invoke(main, COMMANDS[command])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("command", ["report", "evaluate", "audit", "review"])
@pytest.mark.parametrize(
    "cell", ["a\x1b[2Jb", "a\u202egpj.exe", "x" * 100_000, "\x00\x07"], ids=["csi", "bidi", "long", "nul"]
)
@pytest.mark.parametrize("place", ["a label", "a path", "a number", "a column"])
def test_a_message_shows_a_cell_and_does_not_obey_it(command: str, cell: str, place: str, folder: Path) -> None:
    table, labels = Path("results/predictions.csv"), Path("labels.csv")
    labels.write_text(f"path,labels\na.jpg,quartz\nb.jpg,{cell if place == 'a label' else 'quartz'}\n", "utf-8")
    if place == "a path":
        labels.write_text(f"path,labels\na.jpg,quartz\n{cell},gold\n", "utf-8")
    if place == "a number":
        table.write_text(f"{HEADER}\n{GOOD[:-3]}{cell}\n", "utf-8")
    if place == "a column":
        table.write_text(f"{HEADER.replace('path', cell)}\n{GOOD}\n", "utf-8")
    done = CliRunner().invoke(main, COMMANDS[command])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert not OBEYED.search(done.output), done.output
    assert max(map(len, done.output.splitlines())) < 2500
    assert sum(line.startswith("Error: ") for line in done.stderr.splitlines()) == (done.exit_code != 0)


def test_a_name_without_room_for_a_sidecar_s_suffix_costs_its_sidecar_alone(folder: Path) -> None:
    pytest.importorskip("lxml")
    Path("results/predictions.csv").write_text(f"{HEADER}\n{'x' * 251}.jpg,gold,0.8,0.1\n{GOOD}\n", "utf-8")
    done = CliRunner().invoke(main, ["deliver", "results", "--as", "xmp", "-o", "tree"])
    assert done.exit_code == 0, done.output
    assert "1 sidecar new" in done.output
    assert "1 image without one, as the name is too long" in done.output
    assert [path.name for path in Path("tree").iterdir()] == ["a.jpg.xmp"]
