"""`mineral-batch check`: silent about what a run wrote, and one line for everything that is wrong with a table."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner

from mineral_batch import DataError, Failure, ModelContract, Prediction
from mineral_batch.cli import main
from mineral_batch.results.check import check
from mineral_batch.results.write import Tables, write_tables
from mineral_batch.types import ExifInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONTRACT = ModelContract(labels=("agate", "beryl, blue", "gold"), thresholds=(0.5, 0.25, 0.5))
TABLES = Tables(("jsonl", "csv-excel"), per_image=True, columns=("size", "captured", "gps"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A whole folder: three predictions, one failure, every table but Parquet."""
    values = [[0.5, 0.1, 0.9], [0.1, 0.1, 0.1], [0.0, 1.0, 0.49999997]]
    taken = [ExifInfo("2024-05-17T14:03:22+02:00", -12.51, 7.25), ExifInfo(), ExifInfo("2024-05-17T14:03:22")]
    found: list[Prediction | Failure] = [
        Prediction(f"{index}.jpg", np.array(row, np.float32), 640, 480, exif)
        for index, (row, exif) in enumerate(zip(values, taken, strict=True))
    ]
    write_tables(tmp_path, [*found, Failure("bad.jpg", "decode", "damaged")], CONTRACT, TABLES)
    certify(tmp_path)
    return tmp_path


def certify(folder: Path, **changes: Any) -> None:
    record = {
        "schema": 1,
        "started": "2026-11-22T21:28:53+00:00",
        "finished": "2026-11-22T21:28:54+00:00",
        "tables": [*TABLES.files, "failures.csv"],
        "model": {"labels": list(CONTRACT.labels), "thresholds": list(CONTRACT.thresholds)},
        "pictures": {"predicted": 3, "failed": 1, "failed_by_stage": {"decode": 1}},
    }
    (folder / "run.json").write_text(json.dumps(record | changes))


def edit(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))


def test_what_a_run_wrote_has_no_problems(results: Path) -> None:
    assert list(check(results)) == []
    for name in ("predictions.csv", "predictions.excel.csv", "predictions.jsonl", "failures.csv", "run.json"):
        assert list(check(results / name)) == [], name
    excel = results / "predictions.excel.csv"
    excel.write_bytes(excel.read_bytes().replace(b"0,9", b"1,5", 1))
    assert list(check(results)), "the numbers of this table are checked, too"
    (results / "run.json").unlink()  # a table by itself is checked, too
    assert list(check(results / "predictions.csv")) == []


DAMAGE = {
    "a probability above 1": (r"0\.9\b", "1.5", "line 2: no probability from 0 to 1 for gold"),
    "a negative probability": (r",0\.9\b", ",-0.9", "line 2: no probability from 0 to 1 for gold"),
    "no number": (r",0\.9\b", ",nan", "line 2: no probability from 0 to 1 for gold"),
    "a missing field": (r",0\.9\b", "", "line 2: 9 fields instead of 10"),
    "a missing row": (r"1\.jpg.*\n", "", "2 predictions, run.json says 3"),
    "a row twice": (r"(1\.jpg.*\n)", r"\1\1", "line 4: duplicate path '1.jpg'"),
    "no path": (r"1\.jpg", "", "line 3: no path"),
    "an unknown mineral": (r"gold;agate", "gold;ruby", "line 2: minerals 'gold;ruby' are not distinct labels"),
    "a mineral twice": (r"gold;agate", "gold;gold", "line 2: minerals 'gold;gold' are not distinct labels"),
    "the wrong order": (r"gold;agate", "agate;gold", "line 2: minerals are not in the order of their probabilities"),
    "a mineral left out": (r"gold;agate", "agate", "line 2: gold is not listed at 0.9, its threshold is 0.5"),
    "one too many": (r"1\.jpg,,", "1.jpg,gold,", "line 3: gold is listed at 0.1, its threshold is 0.5"),
    "a width of 0": (r"640", "0", "line 2: width '0' is out of range"),
    "a latitude beyond the pole": (r"-12\.51", "-91", "line 2: latitude '-91' is out of range"),
    "a time that is none": (
        r"2024-05-17T14:03:22\+02:00",
        "2024:05:17",
        "line 2: captured '2024:05:17' is not an ISO 8601 time",
    ),
    "a renamed label": (r",gold\n", ",golden\n", "the columns after longitude are not the labels of run.json"),
    "a renamed column": (r"path,minerals", "file,minerals", "the columns must begin with path, minerals"),
    "a column twice": (r",agate,", ",gold,", "duplicate column names: gold"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_the_table_is_reported(results: Path, damage: str) -> None:
    pattern, replacement, expected = DAMAGE[damage]
    edit(results / "predictions.csv", lambda text: re.sub(pattern, replacement, text, count=1))
    problems = list(check(results))
    assert any(problem.startswith(f"predictions.csv: {expected}") for problem in problems), problems


def test_a_probability_that_was_rounded_onto_its_threshold_is_no_problem(results: Path) -> None:
    line = (results / "predictions.csv").read_text().splitlines()[3]
    assert line.endswith(",0,1,0.5")
    assert '"beryl, blue",' in line  # gold, at 0.49999997, is not listed
    assert list(check(results / "predictions.csv")) == []


JSON_DAMAGE = {
    "no JSON": (r"^\{", "", "line 1: not an object of this schema"),
    "another object": (r"^.*\n", "[1, 2]\n", "line 1: not an object of this schema"),
    "no minerals": (r'"minerals": \["gold", "agate"\], ', "", "line 1: not an object of this schema"),
    "other labels": (r'"gold": 0\.9', '"ruby": 0.9', "line 1: its labels are not those of"),
    "a text for a number": (r'"gold": 0\.9', '"gold": "much"', "line 1: no probability from 0 to 1 for gold"),
    "true for a number": (r'"gold": 0\.9', '"gold": true', "line 1: no probability from 0 to 1 for gold"),
    "a stage that is none": (r'"decode"', '"dream"', "line 4: stage 'dream' is not one of read, decode, infer"),
    "a failure less": (r'\{"path": "bad.*\n', "", "0 failures, run.json says 1"),
}


@pytest.mark.parametrize("damage", JSON_DAMAGE)
def test_damage_to_the_lines_is_reported(results: Path, damage: str) -> None:
    pattern, replacement, expected = JSON_DAMAGE[damage]
    edit(results / "predictions.jsonl", lambda text: re.sub(pattern, replacement, text, count=1))
    problems = list(check(results))
    assert any(problem.startswith(f"predictions.jsonl: {expected}") for problem in problems), problems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,stage,reason\nbad.jpg,dream,damaged\n", "line 2: stage 'dream'"),
        ("path,stage,reason\nbad.jpg,decode,\n", "line 2: the reason must be one line"),
        ("path,stage,reason\nbad.jpg,decode\n", "line 2: 2 fields instead of 3"),
        ("path,stage,reason\nbad.jpg\n", "line 2: 1 field instead of 3"),
        ("path,stage,reason\na,read,x\nb,read,x\n", "2 rows, run.json says 1"),
        ("path,stage,reason\na,read,x\na,read,x\n", "line 3: duplicate path 'a'"),
    ],
)
def test_damage_to_the_failures_is_reported(results: Path, text: str, expected: str) -> None:
    (results / "failures.csv").write_text(text)
    assert any(problem.startswith(f"failures.csv: {expected}") for problem in check(results))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schema": 2}, "schema 2; this release reads 1"),
        ({"started": "2027-01-01T00:00:00+00:00"}, "started 2027"),
        ({"finished": "yesterday"}, "started 2026"),
        ({"model": {"labels": ["agate"], "thresholds": []}}, "there must be one threshold per label"),
        ({"pictures": {"predicted": 3, "failed": 1, "failed_by_stage": {"read": 2}}}, "the failures by stage"),
        ({"pictures": {"predicted": "three", "failed": 1}}, "not a run.json of this schema"),
        ({"pictures": []}, "not a run.json of this schema"),
        ({"seconds": math.nan}, "not a run.json of this schema (ValueError: NaN is no"),
        ({"tables": []}, "predictions.csv is not among its tables"),
    ],
)
def test_a_run_json_that_contradicts_itself_is_reported(results: Path, changes: dict[str, Any], expected: str) -> None:
    certify(results, **changes)
    assert any(problem.startswith(f"run.json: {expected}") for problem in check(results))
    assert any(problem.startswith(expected) for problem in check(results / "run.json"))


def test_missing_and_extra_tables_are_reported(results: Path) -> None:
    (results / "predictions.jsonl").unlink()
    next((results / "per-image").iterdir()).unlink()
    assert list(check(results)) == [
        "predictions.jsonl: missing, though run.json names it",
        "per-image: 2 files, run.json says 3",
    ]
    certify(results, tables=["predictions.csv"])
    assert list(check(results)) == ["failures.csv: exists, though run.json does not name it"]
    (results / "run.json").unlink()
    assert "no run into this folder is complete" in next(check(results))


def test_parquet_is_held_against_the_same_rules(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [Prediction(f"{n}.jpg", np.array([0.5, 0.1, 0.9], np.float32), 640, 480, ExifInfo()) for n in range(2)]
    write_tables(tmp_path, rows, CONTRACT, Tables(("parquet",), columns=("size", "captured", "gps")))
    path = tmp_path / "predictions.parquet"
    assert list(check(path)) == []
    table = parquet.read_table(path)
    column = table.column_names.index("gold")
    for values, expected in (
        ([0.9, 1.5], "row 2: no probability"),
        ([0.1, 0.9], "row 1: minerals are not in the order"),
    ):
        parquet.write_table(table.set_column(column, "gold", arrow.array(values, arrow.float32())), path)
        assert [problem[: len(expected)] for problem in check(path)] == [expected]
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(DataError, match="cannot read"):
        list(check(path))


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(check(tmp_path / "none"))
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="cannot check"):
        list(check(tmp_path / "notes.txt"))
    (tmp_path / "empty.csv").write_text("")
    assert list(check(tmp_path / "empty.csv"))
    (tmp_path / "broken.csv").write_text('path,minerals,gold\n"a')
    with pytest.raises(DataError, match="cannot read"):
        list(check(tmp_path / "broken.csv"))


def test_the_command_prints_a_line_a_problem_and_exits_with_1(results: Path) -> None:
    well = CliRunner().invoke(main, ["check", str(results)])
    assert (well.exit_code, well.output) == (0, f"{results}: no problems\n")
    rows = "".join(f"{n}.jpg,,2,2,2\n" for n in range(30))
    (results / "predictions.csv").write_text(f'path,minerals,agate,"beryl, blue",gold\n{rows}')
    ill = CliRunner().invoke(main, ["check", str(results / "predictions.csv")])
    assert ill.exit_code == 1
    lines = ill.output.splitlines()
    assert len(lines) == 21
    assert lines[0] == f"{results}/predictions.csv: line 2: no probability from 0 to 1 for agate, beryl, blue, gold"
    assert lines[-1] == f"{results}/predictions.csv: and 11 more problems"
