"""The paper's tables: the rows, the paper's own figures beside ours, and going on row by row."""

from __future__ import annotations

import csv

import pytest
from click.testing import CliRunner

from mineral_batch.errors import DataError
from mineral_train import paper_tables as tables
from mineral_train.cli import main
from mineral_train.cli import tables as command
from mineral_train.model.presets import PRESETS
from mineral_train.training.config import DoesNotFitError, TrainConfig

RESULT = tables.RowResult("test_vit", 0.912345678, 6, 2, 314_243, 299_907, 384.4, "peak RSS of the process")


@pytest.fixture
def invoke(colored_manifest, tmp_path):
    """`invoke(*options)` -> the command's result, in the folder `tmp_path / "tables"`."""
    labels = tmp_path / "labels.txt"
    labels.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    small = [
        "--image-size", "64", "--width", "32", "--ffn", "48", "--no-pretrained", "--epochs", "1", "--batch", "8",
        "--lr", "1e-3", "--workers", "0", "--device", "cpu", "--quiet", "--stand-in", "vit-b16-384=test_vit",
        "--stand-in", "resnet50-fusion=test_resnet",
    ]  # fmt: skip

    def run(*options):
        arguments = ["tables", str(colored_manifest), "-o", str(tmp_path / "tables"), "--labels", str(labels)]
        return CliRunner().invoke(main, [*arguments, *small, *options])

    return run


def test_every_row_of_the_paper_has_a_preset_and_the_papers_figures():
    assert {row.preset for row in tables.ROWS} <= set(PRESETS)
    figures = {row.name: (row.paper_map, row.paper_parameters, row.paper_memory) for row in tables.ROWS}
    assert figures["MobileNet-V2"] == (72.38, 2.27, 678.59)
    assert figures["ViT-B/16 (384)"] == (85.26, 85.67, 1847.14)
    assert figures["focal loss"] == (84.79, None, None)
    assert figures["Swin Transformer"] == ("tried; did not fit their GPU", None, None)
    assert [sum(row.table == table for row in tables.ROWS) for table in (3, 4, 5)] == [5, 3, 2]


def test_a_training_that_is_in_three_tables_is_one_run():
    runs = [row.run for row in tables.ROWS if row.preset == "vit-b16-384"]
    assert len(runs) == 5
    assert set(runs) == {"vit-b16-384-asymmetric", "vit-b16-384-bce", "vit-b16-384-focal"}


def test_rows_are_chosen_by_table_and_name():
    assert [row.run for row in tables.choose_rows([4], [])] == [
        f"vit-b16-384-{x}" for x in ("bce", "focal", "asymmetric")
    ]
    assert len(tables.choose_rows([], ["vit-b16-384-asymmetric"])) == 3
    with pytest.raises(DataError, match="the rows are vit-b16-384-bce"):
        tables.choose_rows([4], ["resnet-101-asymmetric"])


def test_a_rows_recipe_is_the_presets_with_the_rows_loss():
    recipe = TrainConfig(PRESETS["mobilenet-v2"], epochs=3)
    row = tables.choose_rows([4], ["vit-b16-384-focal"])[0]
    config = tables.row_config(row, recipe, {}, {}, {"vit-b16-384": "vit.pth"})
    assert (config.model, config.loss, config.pretrained) == (PRESETS["vit-b16-384"], "focal", "vit.pth")
    assert config.epochs == 3


def test_the_markdown_shows_ours_beside_the_papers():
    rows = tables.choose_rows([3], ["vit-b16-384-asymmetric", "swin-b-384-asymmetric"])
    text = tables.markdown(dict(zip(rows, [RESULT, "did not fit this GPU"], strict=True)))
    assert "| ViT-B/16 (384) | test_vit | 91.23 | 85.26 | 0.30 | 85.67 | 0.31 | 384.40 | 1847.14 |" in text
    assert "| Swin Transformer | – | did not fit this GPU | tried; did not fit their GPU |" in text
    assert "equation-6, on 6 test images" in text
    assert "peak RSS of the process" in text


def test_rows_are_trained_tested_and_kept(invoke, tmp_path, monkeypatch):
    rows = ["--table", "5", "--rows", "resnet50-fusion-asymmetric"]
    first = invoke(*rows)
    assert first.exit_code == 0, first.output
    with (tmp_path / "tables" / "tables.csv").open(encoding="utf-8") as file:
        record = next(csv.DictReader(file))
    assert (record["status"], record["backbone"], record["paper_map_percent"]) == ("done", "test_resnet", "72.13")
    assert 0 < float(record["test_map"]) <= 1
    assert float(record["peak_memory_mib"]) > 50
    monkeypatch.setattr(tables, "train_row", lambda *_: RESULT)
    again = invoke("--table", "5")
    assert again.exit_code == 0, again.output
    assert f"{100 * float(record['test_map']):.2f}" in again.output
    assert "this paper's method | test_vit | 91.23" in again.output


def test_a_row_that_does_not_fit_is_told_and_the_rest_goes_on(invoke, monkeypatch, tmp_path):
    def train(config, *_):
        if config.loss == "bce":
            raise DoesNotFitError("the GPU's memory does not suffice")
        return RESULT

    monkeypatch.setattr(command.paper, "train_row", train)
    result = invoke("--table", "4")
    assert result.exit_code == 0, result.output
    assert "binary cross-entropy | – | did not fit this GPU" in result.output
    assert "focal loss | test_vit | 91.23" in result.output
    assert (tmp_path / "tables" / "tables.md").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rows", "nothing"], "no row 'nothing'"),
        (["--stand-in", "vit=test_vit"], "--stand-in takes PRESET=VALUE"),
        (["--weights", "vit-b16-384"], "--weights takes PRESET=VALUE"),
        (["--weights", "vit-b16-384=gone.pth"], "--weights: there is no file gone.pth"),
    ],
)
def test_a_mistake_is_one_line(invoke, options, words):
    result = invoke(*options)
    assert result.exit_code == (2 if "PRESET=VALUE" in words else 1)
    assert result.output.startswith(f"Error: {words}")
    assert len(result.output.splitlines()) == 1


def test_a_manifest_without_a_test_split_is_refused_before_training(invoke, colored_manifest, tmp_path):
    manifest = tmp_path / "manifest.csv"
    text = colored_manifest.read_text("utf-8").replace("test", "val")
    manifest.write_text(text, "utf-8")
    result = CliRunner().invoke(
        main, ["tables", str(manifest), "-o", str(tmp_path / "out"), "--labels", str(tmp_path / "labels.txt")]
    )
    assert result.exit_code == 1
    assert "no image of the split 'test'" in result.output
    assert not (tmp_path / "out").exists()


def test_all_that_would_end_a_row_is_named_before_the_first(colored_manifest, tmp_path):
    lines = [f"{colored_manifest.parent}/{line}" for line in colored_manifest.read_text("utf-8").splitlines()[1:]]
    (tmp_path / "damaged.png").write_bytes(b"not an image")
    lines += ["gone.png,gold,test", "damaged.png,gold,test", "x.png,gold"]
    (tmp_path / "m.csv").write_text("\n".join(["path,labels,split", *lines]) + "\n", "utf-8")
    (tmp_path / "names.txt").write_text("agate\ngold\npyrite\nquartz\nGold\n", "utf-8")
    result = CliRunner().invoke(
        main, ["tables", str(tmp_path / "m.csv"), "-o", str(tmp_path / "out"), "--labels", str(tmp_path / "names.txt")]
    )
    assert result.exit_code == 1
    assert "4 faults" in result.output
    assert len(result.output.splitlines()) == 1
    for part in ("label 'Gold' looks like", "2 fields where the header has 3", "gone.png: No such", "damaged.png: not"):
        assert part in result.output, result.output
    assert not (tmp_path / "out").exists()


def test_tables_that_were_edited_stay(invoke, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "train_row", lambda *_: RESULT)
    assert invoke("--table", "5").exit_code == 0
    page = tmp_path / "tables" / "tables.md"
    page.write_text(kept := page.read_text("utf-8") + "our own remark\n", "utf-8")
    result = invoke("--table", "5")
    assert result.exit_code == 1
    assert "tables.md already exists and has been edited since mineral-train tables wrote it" in result.output
    assert page.read_text("utf-8") == kept
