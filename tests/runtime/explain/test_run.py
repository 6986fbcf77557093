"""`mineral-batch explain`: the files it writes, its options, its messages."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.explain.explainer import open_explainer
from mineral_batch.explain.maps import MAPS_KEY, MapSpec
from mineral_batch.explain.run import ExplainOptions, run
from mineral_batch.model.onnx_file import write_metadata

from .models import GRID, picture, save_mask, write_color_model


def invoke(*arguments):
    return CliRunner().invoke(main, ["explain", *map(str, arguments)])


def size_of(path):
    with Image.open(path) as opened:
        return opened.size


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def rows(folder):
    with (folder / "maps.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_mineral_of_every_image_gets_an_overlay(album, color_model_path, tmp_path):
    done = invoke(album, "-m", color_model_path, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    table = rows(tmp_path / "out")
    assert {(Path(row["path"]).name, row["mineral"]) for row in table} == {
        ("both.png", "azurite"),
        ("both.png", "cinnabar"),
        ("green.png", "malachite/green"),
    }
    for row in table:
        assert size_of(tmp_path / "out" / row["overlay"]) == size_of(row["path"])
        assert float(row["probability"]) >= 0.5
        assert row["present"] == "1"
    assert "3 maps of 3 images" in done.output
    assert "No map for 1 of 3 images: no mineral among its 2 most probable reaches its threshold" in done.output
    assert f"{tmp_path / 'out/maps.csv'}, {tmp_path / 'out/overlays'}" in done.output
    assert not list((tmp_path / "out").glob(".*"))
    assert len(files(tmp_path / "out" / "overlays")) == 3


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_rotated_photo_is_explained_upright(orientation, color_model_path, tmp_path):
    upright = picture((640, 480), ("cinnabar", 480, 40, 120))
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    upright.transpose(undo).save(tmp_path / "turned.jpg", quality=95, exif=exif)
    done = invoke(tmp_path / "turned.jpg", "-m", color_model_path, "-o", tmp_path / "out", "-q")
    assert done.exit_code == 0, done.output
    (row,) = rows(tmp_path / "out")
    assert 480 <= float(row["peak_x"]) < 600
    assert 40 <= float(row["peak_y"]) < 160
    assert size_of(tmp_path / "out" / row["overlay"]) == (640, 480)


def test_new_run_replaces_an_earlier_one(album, color_model_path, tmp_path):
    out = tmp_path / "out"
    assert invoke(album, "-m", color_model_path, "-o", out, "--maps", "-q").exit_code == 0
    assert len(files(out / "maps")) == 2
    assert invoke(album / "deep", "-m", color_model_path, "-o", out, "-q").exit_code == 0
    assert [Path(row["path"]).name for row in rows(out)] == ["green.png"]
    assert len(files(out / "overlays")) == 1
    assert not (out / "maps").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--top", "1"], {("both.png", 1), ("green.png", 1)}),
        (["--mineral", "cinnabar"], {("both.png", 1)}),
        (["--min-probability", "0"], {("both.png", 2), ("green.png", 2), ("gray.png", 2)}),
        (["--min-probability", "1"], set()),
    ],
)
def test_options_select_the_maps(options, expected, album, color_model_path, tmp_path):
    done = invoke(album, "-m", color_model_path, "-o", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    names = [Path(row["path"]).name for row in rows(tmp_path / "out")]
    assert {(name, names.count(name)) for name in names} == expected


def test_overlays_are_reduced_and_maps_written_as_numbers(album, color_model_path, tmp_path):
    done = invoke(album / "both.png", "-m", color_model_path, "-o", tmp_path / "out", "--side", "160", "--maps", "-q")
    assert done.exit_code == 0, done.output
    (first, _), out = rows(tmp_path / "out"), tmp_path / "out"
    assert size_of(out / first["overlay"]) == (160, 120)
    with np.load(next((out / "maps").rglob("both.png.npz"))) as saved:
        assert saved["labels"].tolist() == ["azurite", "cinnabar"] or saved["labels"].tolist() == [
            "cinnabar",
            "azurite",
        ]
        assert saved["maps"].shape == (2, *GRID)
        assert saved["size"].tolist() == [640, 480]
        assert saved["seen"].tolist() == [0, 0, 640, 480]


def test_archive_and_threads_give_the_same_maps(album, color_model_path, tmp_path):
    shutil.make_archive(str(tmp_path / "all"), "zip", album)
    tables = []
    for inputs, threads in ((album, 1), (album, 4), (tmp_path / "all.zip", 3)):
        with open_explainer(color_model_path) as explainer:
            report = run(explainer, [inputs], tmp_path / "out", ExplainOptions(), threads=threads)
        tables.append([(row.mineral, row.probability, row.peak) for row in report.rows])
    assert tables[0] == tables[1]
    assert sorted(tables[0]) == sorted(tables[2])


def test_inputs_from_a_list(album, color_model_path, tmp_path):
    (tmp_path / "list.txt").write_text(f"{album / 'both.png'}\n{album / 'deep'}\n", "utf-8")
    done = invoke("--list", tmp_path / "list.txt", "-m", color_model_path, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert {Path(row["path"]).name for row in rows(tmp_path / "out")} == {"both.png", "green.png"}
    assert invoke("-m", color_model_path, "-o", tmp_path / "out").exit_code == 2


def test_damaged_image_is_a_row_and_exit_3(album, color_model_path, tmp_path):
    (album / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    done = invoke(album, "-m", color_model_path, "-o", tmp_path / "out")
    assert done.exit_code == 3, done.output
    with (tmp_path / "out" / "failures.csv").open(newline="") as file:
        (failure,) = csv.DictReader(file)
    assert Path(failure["path"]).name == "broken.jpg"
    assert failure["stage"] == "decode"
    assert len(rows(tmp_path / "out")) == 3


def test_scores_by_masks(album, color_model_path, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    save_mask(
        masks / "both.png", (640, 480), ("azurite", 40, 40, 150), ("cinnabar", 0, 300, 150)
    )  # the second is wrong
    save_mask(masks / "green.png", (300, 400), ("malachite/green", 100, 30, 90))
    done = invoke(album, "-m", color_model_path, "-o", tmp_path / "out", "--score", masks, "--deletion")
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["maps"] == 3
    assert scores["pointing"] == pytest.approx(2 / 3, abs=1e-5)
    assert scores["pointing_center"] == 0
    assert (scores["maps_off_center"], scores["pointing_off_center"]) == (3, scores["pointing"])
    assert {name: one["pointing"] for name, one in scores["minerals"].items()} == {
        "azurite": 1,
        "cinnabar": 0,
        "malachite/green": 1,
    }
    assert scores["deletion"] < scores["deletion_center"]
    assert scores["insertion"] > scores["insertion_center"]
    assert "Pointing game, 3 maps: 66.7% on the mineral (center of the image 0.0%" in done.output


def test_starter_model_explains_by_default(album, tmp_path):
    done = invoke(album, "-o", tmp_path / "out", "--min-probability", "0", "--top", "1")
    assert done.exit_code == 0, done.output
    assert "mineral-batch starter: 36 minerals, grad-cam maps of 16 x 16" in done.output
    assert len(rows(tmp_path / "out")) == 3


def model_with_broken_metadata(folder):
    path = write_color_model(folder / "plain.onnx")
    write_metadata(path, {MAPS_KEY: "{}"})
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["album", "-m", "MODEL", "--mineral", "azurit"], "the model has no mineral 'azurit'; did you mean azurite?"),
        (["nowhere", "-m", "MODEL"], "no such file or folder: nowhere"),
        (["album", "-m", "MODEL", "--score", "nowhere"], "no such folder of masks: nowhere"),
        (
            ["album", "-m", "BARE"],
            "export its checkpoint again with `mineral-export onnx CHECKPOINT --explain`",
        ),
        (["album", "-m", "BROKEN"], "cannot read the model's description of its maps"),
        (["album", "-m", "OTHER"], "the model's graph gives maps of the shapes"),
        (["album", "-m", "MODEL", "-o", "album/gray.png"], "cannot write album/gray.png"),
    ],
)
def test_user_error_is_one_line(arguments, message, album, color_model_path, model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken, other = model_with_broken_metadata(tmp_path), write_color_model(tmp_path / "other.onnx")
    write_metadata(other, {MAPS_KEY: MapSpec("grad-cam", (3, 3), 2).to_json()})
    models = {"MODEL": color_model_path, "BARE": model_path, "BROKEN": broken, "OTHER": other}
    done = invoke(*(models.get(word, word) for word in arguments), "-q")
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1


@pytest.mark.parametrize("edit", ["maps.csv", "overlays/mine.png", "failures.csv"])
def test_edited_files_and_files_added_later_stay(edit, album, color_model_path, tmp_path):
    out = tmp_path / "out"
    (album / "broken.jpg").write_bytes(b"no image")
    for _ in range(2):
        assert invoke(album, "-m", color_model_path, "-o", out).exit_code == 3
    (out / edit).write_text("mine")
    done = invoke(album, "-m", color_model_path, "-o", out)
    assert done.exit_code == 1
    assert "has been edited since explain wrote it" in done.output
    assert (out / edit).read_text() == "mine"


@pytest.mark.parametrize("name", ["maps/france.txt", "maps.csv", "overlays/a.png", "failures.csv"])
def test_files_of_others_in_the_output_folder_stay(name, album, color_model_path, tmp_path):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = invoke(album, "-m", color_model_path, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "was not written by explain: move it, or choose another f" in done.output
    assert mine.read_text() == "mine"
    assert files(tmp_path / "out") == [mine]


def test_an_edited_table_of_maps_is_not_overwritten_and_report_says_so(album, color_model_path, tmp_path):
    out, results = tmp_path / "out", tmp_path / "results"
    assert invoke(album, "-m", color_model_path, "-o", out).exit_code == 0
    predicted = CliRunner().invoke(main, ["predict", str(album), "-m", str(color_model_path), "-o", str(results)])
    assert predicted.exit_code == 0, predicted.output
    page = ["report", str(results), "-o", str(tmp_path / "page.html"), "--explained", str(out)]
    assert "since explain wrote" not in CliRunner().invoke(main, page).output
    table = out / "maps.csv"
    table.write_text(kept := table.read_text("utf-8").replace(",1,", ",0,"), "utf-8")
    assert f"Note: {table} was edited since explain wrote it" in CliRunner().invoke(main, page).output
    moved = out.rename(tmp_path / "moved")
    done = invoke(album, "-m", color_model_path, "-o", moved)
    assert done.exit_code == 1
    assert f"{moved / 'maps.csv'} already exists and has been edited since explain wrote it: move it" in done.output
    assert (moved / "maps.csv").read_text("utf-8") == kept
    (moved / "maps.csv").unlink()
    assert invoke(album, "-m", color_model_path, "-o", moved).exit_code == 0
    assert invoke(album, "-m", color_model_path, "-o", moved).exit_code == 0
