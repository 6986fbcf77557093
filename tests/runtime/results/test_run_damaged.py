"""Damaged images predicted on request from what can be decoded: marked wherever their rows go, never on their own."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mineral_batch import Failure, Prediction, Predictor
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.processes.pool import is_supported
from mineral_batch.report.data import pages
from mineral_batch.report.groups import Groups
from mineral_batch.results.check import check
from mineral_batch.results.read import read_results
from mineral_batch.results.run import run
from mineral_batch.results.write import Tables

from ..conftest import encode
from ..images.damaging import textured

onnxruntime = pytest.importorskip("onnxruntime")

ALL = Tables(("csv", "jsonl"), per_image=True)
DAMAGED, HOPELESS = "b.jpg", "c.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    whole = encode(textured(240, 180, 0), "JPEG", quality=85)
    (folder / "a.jpg").write_bytes(whole)
    (folder / DAMAGED).write_bytes(whole[: len(whole) * 2 // 3])
    (folder / HOPELESS).write_bytes(b"\xff\xd8 no more of it")
    return folder


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.skipif(not is_supported(), reason="needs POSIX"))])
def tolerant(model_path: Path, request: pytest.FixtureRequest) -> Iterator[Predictor]:
    with Predictor(model_path, damaged="predict", decode_processes=request.param) as opened:
        yield opened


def column(folder: Path) -> dict[str, str | None]:
    with (folder / "predictions.csv").open(newline="") as file:
        return {Path(row["path"]).name: row.get("damaged") for row in csv.DictReader(file)}


def test_marked_in_every_table_and_the_report(folder: Path, tmp_path: Path, tolerant: Predictor) -> None:
    target = tmp_path / "out"
    summary = run(tolerant, [folder], target, ALL)
    marks = column(target)
    assert {name: bool(mark) for name, mark in marks.items()} == {"a.jpg": False, DAMAGED: True}
    lines = [json.loads(line) for line in (target / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("damaged") for line in lines] == ["", marks[DAMAGED], None]
    own = next((target / "per-image").rglob(f"{DAMAGED}.csv"))
    assert {row["damaged"] for row in csv.DictReader(own.read_text().splitlines())} == {marks[DAMAGED]}
    assert summary.counts is not None
    assert (summary.counts.damaged, json.loads((target / "run.json").read_text())["pictures"]["damaged"]) == (1, 1)
    assert list(check(target)) == []
    assert next(pages(read_results(target), None, Groups()))["damaged"] == {1: marks[DAMAGED]}


def test_what_was_decoded_is_that_of_the_whole_image(folder: Path) -> None:
    whole, part = (np.asarray(open_rgb(folder / name, keep_damaged=True), int) for name in ("a.jpg", DAMAGED))
    assert (whole[:96] == part[:96]).all()
    assert not (whole[-8:] == part[-8:]).all()


def test_only_damaged_images_are_done_again(
    folder: Path, tmp_path: Path, predictor: Predictor, tolerant: Predictor
) -> None:
    target = tmp_path / "out"
    first = run(predictor, [folder], target)
    assert (first.new, first.failed, column(target)) == (3, 2, {"a.jpg": None})
    again = run(tolerant, [folder], target)
    assert (again.new, again.failed, set(column(target))) == (2, 1, {"a.jpg", DAMAGED})
    assert run(tolerant, [folder], target).new == 0
    strict = run(predictor, [folder], target)
    assert (strict.new, strict.failed, column(target)) == (1, 2, {"a.jpg": None})


def test_a_run_without_the_option_keeps_the_marks_of_other_inputs(
    folder: Path, tmp_path: Path, predictor: Predictor, tolerant: Predictor
) -> None:
    target, other = tmp_path / "out", tmp_path / "other"
    run(tolerant, [folder], target)
    other.mkdir()
    (other / "d.jpg").write_bytes((folder / "a.jpg").read_bytes())
    run(predictor, [other], target)
    assert {name: bool(mark) for name, mark in column(target).items()} == {
        "a.jpg": False,
        DAMAGED: True,
        "d.jpg": False,
    }


def test_from_python(folder: Path, predictor: Predictor, tolerant: Predictor) -> None:
    assert isinstance(predictor.predict_one(folder / DAMAGED), Failure)
    result = tolerant.predict_one(folder / DAMAGED)
    assert isinstance(result, Prediction)
    assert result.damage
    assert isinstance(tolerant.predict_one(folder / HOPELESS), Failure)
