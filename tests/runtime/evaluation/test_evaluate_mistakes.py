"""`mineral-batch evaluate`: what is wrong with its tables is one line."""

from __future__ import annotations

import re

import pytest

from mineral_batch.evaluation.evaluate import join
from mineral_batch.minerals import MINERALS

from .judging import LABELS, fails, run


def test_a_missing_file_a_folder_and_an_empty_file(world, tmp_path):
    predictions, labels = world.predictions(), world.labels()
    assert "there is no file" in fails(tmp_path / "none.csv", labels)
    (tmp_path / "folder").mkdir()
    assert "cannot read" in fails(predictions, tmp_path / "folder")
    assert fails(labels, tmp_path).endswith(f"in the right order: mineral-batch evaluate {tmp_path} {labels}\n")
    labels.write_bytes(b"")
    assert "has no column path, labels; its first line has nothing" in fails(predictions, labels)


def test_a_missing_column_names_those_there_are(world):
    labels = world.labels(header=("folder", "labels", "split"))
    assert "has no column path; its first line has folder, labels, split" in fails(world.predictions(), labels)
    predictions = world.predictions(header=("path", "called", *LABELS))
    assert "has no column minerals" in fails(predictions, world.labels())
    predictions = world.predictions(header=("path", "minerals", "agate", "agate", "quartz", "topaz"))
    assert "duplicate column names: agate" in fails(predictions, world.labels())


def test_a_path_that_no_file_can_have_is_refused(world):
    rows = world.prediction_rows
    rows[2][0] = "a\0.jpg"
    assert "line 4: a NUL character in the path" in fails(world.predictions(rows), world.labels())


@pytest.mark.parametrize("cell", ["high", "", "nan", "1.5", "-0.1", "inf"])
def test_a_bad_number_is_named_with_its_line_and_column(world, cell):
    rows = world.prediction_rows
    rows[7][4] = cell
    message = fails(world.predictions(rows), world.labels())
    assert f"predictions.csv line 9, column quartz: {cell!r} is not a probability" in message


def test_a_short_row_is_named_with_its_line(world):
    rows = world.prediction_rows
    rows[3] = rows[3][:-1]
    assert "line 5: 5 fields where the header has 6" in fails(world.predictions(rows), world.labels())


def test_a_misspelled_label_is_named_with_the_nearest(world):
    rows = world.label_rows
    rows[2][1] = "gold;qartz"
    message = fails(world.predictions(), world.labels(rows))
    assert (
        "labels that the model does not have and that look misspelled: 'qartz' (line 4, did you mean 'quartz'?); "
        "correct them" in message
    )
    assert "(and their images): qartz (1)." in run(
        world.predictions(), world.labels(rows), "--ignore-unknown"
    ).stdout.replace("\n", " ")


def test_labels_of_other_minerals_are_counted_and_change_no_figure(world):
    rows = world.label_rows
    figures = run(world.predictions(), world.labels(rows)).stdout.split("\n\n", 1)[1]
    for row, name in zip(rows, ["feldspar", "feldspar", "calcite"], strict=False):
        row[1] = f"{row[1]};{name}"
    text = run(world.predictions(), world.labels(rows)).stdout
    assert text.split("\n\n", 1)[1] == figures
    assert (
        "Labels that the model does not have, counted as other minerals (and their images): feldspar (2), calcite (1)."
    ) in text
    assert "has only labels that the model does not have: 'calcite' (line 2)" in fails(
        world.predictions(), world.labels([[rows[0][0], "calcite", ""]])
    )


@pytest.mark.parametrize("cell", ["?", "Unknown", "quartz;unidentified"])
def test_an_image_whose_label_is_not_known_is_left_out(world, cell):
    rows = world.label_rows
    kept = run(world.predictions(), world.labels(rows[1:])).stdout.split("\n\n", 1)[1]
    rows[0][1] = cell
    text = run(world.predictions(), world.labels(rows)).stdout
    assert text.startswith("59 images are in both")
    assert "left out, as their label says that it is not known: 1." in text
    assert text.split("\n\n", 1)[1] == kept
    assert "belong to other splits" not in text


def test_a_mineral_called_present_must_be_a_column(world):
    rows = world.prediction_rows
    rows[0][1] = "gold;ruby"
    assert "line 2: minerals names ruby, which is not a column" in fails(world.predictions(rows), world.labels())


def test_a_picture_named_twice_is_refused(world):
    rows = world.label_rows
    rows[4][0] = rows[1][0]
    assert "names images/01.jpg twice, in lines 3 and 6" in fails(world.predictions(), world.labels(rows))
    rows[4][0] = "./images/01.jpg"
    assert "are the same path" in fails(world.predictions(), world.labels(rows))


def test_nothing_in_common_shows_an_example_of_each(world):
    labels = world.labels([["elsewhere/a.jpg", "gold", "test"]])
    message = fails(world.predictions(), labels)
    assert "no image is in both tables" in message
    assert "photos/images/00.jpg" in message
    assert "elsewhere/a.jpg" in message
    assert "no image is in both" in fails(world.predictions([]), labels)


def test_a_renamed_folder_and_synonyms_are_matched_and_reported(world):
    rows = [
        [path.replace("images/", "renamed/"), labels.replace("quartz", "Amethyst"), split]
        for path, labels, split in world.label_rows
    ]
    plain = run(world.predictions(), world.labels()).stdout
    renamed = run(world.predictions(), world.labels(rows)).stdout
    assert "Read as: Amethyst = quartz.\n" in renamed
    assert "60 labeled paths matched by file name only" in renamed
    assert "for example renamed/00.jpg is photos/images/00.jpg.\n" in renamed
    assert renamed.split("\n\n", 1)[1] == plain.split("\n\n", 1)[1]


def test_an_unknown_split_lists_those_there_are(world):
    assert "no rows of split 'train'; it has test, val" in fails(
        world.predictions(), world.labels(), "--split", "train"
    )


@pytest.mark.parametrize("value", ["1.5", "-1", "nan"])
def test_a_threshold_is_a_probability(world, value):
    assert "0 to 1" in fails(world.predictions(), world.labels(), f"--thresholds={value}", code=2)


def test_an_output_that_cannot_be_written(world):
    result = run(world.predictions(), world.labels(), "--json", world.folder / "none" / "x.json", code=1)
    assert re.search(r"^Error: cannot write .*x\.json: No such file or directory", result.stderr)


def test_the_36_minerals_are_known_without_being_labeled(world):
    header = ["path", "minerals", *MINERALS]
    predictions = world.predictions([["a.jpg", "", *["0.123456"] * 36]], header)
    joined = join(predictions, world.labels([["a.jpg", "gold", ""]]))
    assert joined.predictions.labels == MINERALS
