"""Photographs are checked before a model is built."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mineral_batch.errors import DataError
from mineral_batch.model.contract import InputSpec
from mineral_train.data.images import undecodable, warnings
from mineral_train.data.manifest import read_manifest
from mineral_train.training.data import TrainingManifest

LABELS = ("agate", "gold")


def _manifest(folder: Path, *lines: str) -> Path:
    path = folder / "m.csv"
    path.write_text("\n".join(("path,labels,split", *lines)) + "\n", encoding="utf-8")
    return path


def test_all_faults_of_the_files_are_named_at_once(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "a.jpg", 1)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    path = _manifest(
        tmp_path, "a.jpg,gold,train", "link.jpg,gold,val", "gone.jpg,gold,val", "empty.jpg,,train", "sub\\b.jpg,,train"
    )
    with pytest.raises(DataError) as caught:
        TrainingManifest.read(path, LABELS)
    text = str(caught.value)
    assert "4 faults" in text
    assert "link.jpg (val) is the same file as" in text
    assert "gone.jpg: No such file" in text
    assert "empty.jpg: the file is empty" in text
    if os.sep == "/":
        assert "write / for the backslashes" in text
    assert "\n" not in text


def test_missing_test_images_do_not_stop_training(tmp_path: Path, save_photo) -> None:
    for name in "ab":
        save_photo(tmp_path / f"{name}.jpg", ord(name))
    path = _manifest(tmp_path, "a.jpg,gold,train", "b.jpg,gold,val", "gone.jpg,gold,test")
    assert len(TrainingManifest.read(path, LABELS).manifest.rows) == 3


def test_faults_of_labels_tables_files_and_images_are_named_in_one_run(tmp_path: Path, save_photo) -> None:
    """A user who corrects what is named must not be told of the next kind by the next run."""
    save_photo(tmp_path / "a.jpg", 1)
    (tmp_path / "damaged.jpg").write_bytes(b"not an image")
    (tmp_path / "folder.jpg").mkdir()
    gone = [f"gone{number}.jpg,gold,train" for number in range(9)]
    rows = ["a.jpg,gold,train", "a.jpg,gold,val", "damaged.jpg,golf,val", "folder.jpg,,train", ",,train", "b.jpg,,dev"]
    rows += ["c.jpg,gold"]
    path = _manifest(tmp_path, *rows, *gone)
    with pytest.raises(DataError) as caught:
        TrainingManifest.read(path, (*LABELS, "Gold", "a;b"), spec=InputSpec(32, 32))
    text = str(caught.value)
    assert "\n" not in text
    for part in (
        "label 'Gold' looks like label 'gold'",
        "label 'a;b' contains ';'",
        "a.jpg was already in line 2",
        "'golf' (did you mean ",
        "line 6: the path is empty",
        "line 7: split must be one of train, val, test, not 'dev'",
        "line 8: 2 fields where the header has 3",
        "folder.jpg is a folder; name an image",
        "gone0.jpg: No such file",
        "damaged.jpg: ",
        "--skip-damaged",
    ):
        assert part in text, text


def test_images_that_do_not_decode_are_found(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "a.jpg", 1)
    (tmp_path / "b.jpg").write_bytes(b"not an image")
    path = _manifest(tmp_path, "a.jpg,gold,val", "b.jpg,gold,val")
    (failure,) = undecodable(read_manifest(path, LABELS).select("val"), InputSpec(32, 32))
    assert failure.path.endswith("b.jpg")


def test_what_a_split_cannot_teach_or_measure_is_said(tmp_path: Path) -> None:
    lines = warnings(read_manifest(_manifest(tmp_path, "a.jpg,gold,train", "b.jpg,gold,val"), LABELS))
    assert any("no image in 'train', so the model cannot learn them: 'agate'" in line for line in lines)
    assert any("only 1 images in 'val'" in line for line in lines)
    assert any("in every image of 'val'" in line for line in lines)


def test_labels_of_ones_own_among_the_36_name_the_option(tmp_path: Path) -> None:
    lines = warnings(read_manifest(_manifest(tmp_path, "a.jpg,gold,train", "b.jpg,gold,val")))
    assert lines[0].startswith("Warning: 35 of 36 labels have no image in 'train'")
    assert lines[0].endswith("for a model of your labels only, list them in a file, one per line: --labels FILE")
    assert "--labels" not in lines[1]


def test_an_ordinary_split_has_no_warnings(tmp_path: Path) -> None:
    rows = [f"{split}{k}.jpg,{label},{split}" for split in ("train", "val") for label in LABELS for k in range(20)]
    rows = [row.replace(".jpg", f"{n}.jpg") for n, row in enumerate(rows)]
    assert warnings(read_manifest(_manifest(tmp_path, *rows), LABELS)) == []
