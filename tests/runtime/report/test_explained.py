"""Maps of `mineral-batch explain` in a report."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch.cli import main

from .runs import MAPPED, ROWS, Page, explain, open_jpeg, report


def test_maps_are_small_copies_with_the_size_of_their_photos(run: Path) -> None:
    explain(Path("maps"), [*MAPPED, ("elsewhere/x.jpg", "gold", 0.8)])
    done = report("-o", "page.html", "--thumbnails", "64", "--explained", "maps")
    page = Page(Path("page.html"))
    (block,) = page.data["maps"]
    assert set(block) == {"0-0", "1-1", "1-3"}
    picture = open_jpeg(base64.b64decode(block["1-1"]))
    assert picture.size == open_jpeg(base64.b64decode(page.data["thumbnails"][0]["1"])).size
    assert np.abs(np.subtract(picture.getpixel((30, 20)), (255, 165, 0))).max() < 8
    assert "3 maps of 2 photographs" in page.text
    assert "1 maps belong to images that are not in this run" in done.output


def test_missing_maps_are_left_out_and_counted(run: Path) -> None:
    explain(Path("maps"))
    Path("maps/overlays/photos/b.jpg/gold.png").unlink()
    done = report("-o", "page.html", "--explained", "maps")
    assert set(Page(Path("page.html")).data["maps"][0]) == {"0-0", "1-3"}
    assert "1 of 3 maps are missing or unreadable" in done.output


def test_folder_has_maps_beside_the_page(run: Path) -> None:
    explain(Path("maps"))
    report("--folder", "-o", "page", "--explained", "maps")
    assert [p.name for p in sorted(Path("page/maps/00000").iterdir())] == [
        "00000000-0.jpg", "00000001-1.jpg", "00000001-3.jpg",
    ]  # fmt: skip
    rows = json.loads(Path("page/data/00000.js").read_text().split(".push(", 1)[1].removesuffix(");\n"))
    assert rows["maps"] == {"0": [0], "1": [1, 3]}


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (None, "no maps.csv in maps: name the output folder of mineral-batch explain"),
        ([("else/x.jpg", "gold", 0.8)], "none of the 1 maps in maps is of an image in"),
        ([("photos/b.jpg", "gold", 0.2)], "maps are of another model than"),
        ([("photos/b.jpg", "topaz", 0.8)], "the run says nothing; give both commands the same --model"),
        ([("photos/b.jpg", "gold", float("nan"))], "maps are of another model than"),
    ],
)
def test_maps_of_another_run_are_refused(run: Path, maps: list[tuple[str, str, float]] | None, message: str) -> None:
    if maps:
        explain(Path("maps"), maps)
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.splitlines()) == 1
    assert not Path("page.html").exists()


def test_damaged_table_of_maps_is_refused(run: Path) -> None:
    explain(Path("maps"))
    for old, new, message in (
        ("overlay\n", "\n", "has no column overlay"),
        ("0.9", "high", "has the probability 'high'"),
    ):
        content = Path("maps/maps.csv").read_text()
        Path("maps/maps.csv").write_text(content.replace(old, new))
        done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
        assert (done.exit_code, message in done.output) == (1, True), done.output
        Path("maps/maps.csv").write_text(content)


def test_maps_count_towards_the_largest_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explain(Path("maps"))
    monkeypatch.setattr("mineral_batch.report.build.LARGEST_FILE", len(ROWS) + 2)
    report("-o", "page.html")
    done = CliRunner().invoke(main, ["report", "results", "-o", "page.html", "--explained", "maps"])
    assert done.exit_code == 1
    assert f"{len(ROWS)} images and 3 maps are too many for one file" in done.output
