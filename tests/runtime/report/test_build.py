"""The files of a report: one page or a folder, thumbnails, and messages."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from mineral_batch.cli import main

from .runs import ROWS, Page, open_jpeg, report, write_predictions


def test_thumbnails_show_the_photos_and_missing_photos_do_no_harm(run: Path) -> None:
    done = report("-o", "page.html", "--thumbnails", "64")
    (block,) = Page(Path("page.html")).data["thumbnails"]
    assert set(block) == {"0", "1", "2", "3"}
    picture = open_jpeg(base64.b64decode(block["0"]))
    assert picture.size == (64, 48)
    red, green, blue = picture.getpixel((30, 20))
    assert (red > 240, green < 15, blue < 15) == (True, True, True)
    assert f"No thumbnail for 3 of {len(ROWS)} images" in done.output


def test_the_table_names_its_folder(run: Path) -> None:
    for given in ("results", "results/predictions.csv"):
        done = CliRunner().invoke(main, ["report", given, "-o", "page.html"])
        assert done.exit_code == 0, done.output
        assert "page.html" in done.output
        Path("page.html").rename(f"{Path(given).name}.html")
    assert Path("results.html").read_bytes() == Path("predictions.csv.html").read_bytes()


def test_photos_are_found_from_another_folder_and_in_archives(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.make_archive("box", "zip", root_dir=".", base_dir="photos")
    write_predictions(run / "predictions.csv", [("box.zip/photos/b.jpg", ROWS[1][1], ""), ROWS[0]])
    elsewhere = run.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    done = CliRunner().invoke(main, ["report", "../results", "-o", "page.html"])
    assert done.exit_code == 0, done.output
    (block,) = Page(Path("page.html")).data["thumbnails"]
    assert set(block) == {"0", "1"}
    red, green, blue = open_jpeg(base64.b64decode(block["0"])).getpixel((5, 5))
    assert red > 240
    assert 200 < green < 230
    assert blue < 20


def test_folder_has_thumbnails_and_data_beside_the_page(run: Path) -> None:
    for _ in range(2):  # the second time it replaces its own
        report("--folder", "-o", "page", "--labels", "labels.csv")
    assert [p.name for p in sorted(Path("page/thumbs/00000").iterdir())] == [f"{i:08}.jpg" for i in range(4)]
    data = Path("page/data/00000.js").read_text()
    rows = json.loads(data.split(".push(", 1)[1].removesuffix(");\n"))
    assert rows["thumbnails"] == [1, 1, 1, 1, 0, 0, 0]
    assert rows["truth"][:2] == [[0], [1, 3]]
    reading = "2 images are labeled agate but not quartz; they count as not quartz"
    assert reading in Path("page/index.html").read_text(), "which reading of varieties the accuracy has"
    assert not list(run.parent.glob(".page*"))


def test_folder_that_is_not_a_report_is_left_alone(run: Path) -> None:
    done = CliRunner().invoke(main, ["report", "results", "--folder", "-o", "photos"])
    assert done.exit_code == 1
    assert "photos already exists and is not a report" in done.output
    assert Path("photos/a.jpg").exists()


def test_a_file_that_is_not_a_report_is_left_alone(run: Path) -> None:
    before = Path("labels.csv").read_bytes()
    done = CliRunner().invoke(main, ["report", "results", "-o", "labels.csv"])
    assert done.exit_code == 1
    assert "labels.csv already exists and was not written by report, or has been edited since: move it" in done.output
    assert Path("labels.csv").read_bytes() == before
    Path("page.html").touch()  # empty: as from mktemp
    for _ in range(2):
        report("-o", "page.html", "--thumbnails", "0")


def test_too_many_images_for_one_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mineral_batch.report.build.LARGEST_FILE", 3)
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html"])
    assert done.exit_code == 1
    assert "--folder" in done.output
    assert not Path("page.html").exists()
    report("-o", "page.html", "--thumbnails", "0")
    report("-o", "folder", "--folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no predictions.csv in nowhere"),
        (["results", "-o", "no/such/folder/page.html"], "cannot write"),
        (["results", "--labels", "absent.csv"], "there is no file absent.csv"),
        (["results", "--labels", "labels.csv", "--split", "val"], "no rows of split 'val'"),
        (["results", "--split", "val"], "--split needs --labels"),
        (["results", "--explained", "maps", "--thumbnails", "0"], "--explained needs thumbnails"),
    ],
)
def test_user_error_is_one_line(run: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["report", *words])
    assert done.exit_code in (1, 2)
    assert message in done.output


def test_thumbnails_use_only_the_cpus_of_the_process(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def slow_read(path: Path) -> bytes:
        threads.add(threading.current_thread().name)
        time.sleep(0.05)
        return path.read_bytes()

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    monkeypatch.setattr("mineral_batch.report.thumbnails.read_file", slow_read)
    report("-o", "page.html")
    assert len(threads) == 1
