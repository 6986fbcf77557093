"""Tables: whole or not at all, and read back as they were written."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mineral_batch import DataError, Failure, ModelContract, Prediction
from mineral_batch.results.csv import decimal_point
from mineral_batch.results.per_image import mirrored
from mineral_batch.results.predictions import read_predictions
from mineral_batch.results.write import CSV_ONLY, Tables, require, sweep, write_partial, write_tables
from mineral_batch.types import ExifInfo, labels_present

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LABELS = ("agate", "beryl, blue", "Größe °")


def contract(thresholds: Sequence[float] = (0.5, 0.5, 0.5)) -> ModelContract:
    return ModelContract(labels=LABELS, thresholds=tuple(thresholds))


def prediction(path: str, *values: float) -> Prediction:
    return Prediction(path, np.array(values, np.float32), 640, 480)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file, strict=True))


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write(folder: Path, *results: Prediction | Failure, tables: Tables = CSV_ONLY) -> None:
    write_tables(folder, results, contract(), tables)


JSON = Tables(("jsonl",))
SINGLE = Tables(per_image=True)
TAKEN = ExifInfo("2024-05-17T14:03:22+02:00", -12.51, 7.000004)


def test_a_clean_run_leaves_one_table(tmp_path: Path) -> None:
    write(tmp_path, prediction("b.jpg", 0.25, 0.75, 0.5), prediction("a.jpg", 0.1, 0.2, 0.3))
    assert listing(tmp_path) == ["predictions.csv"]
    assert rows(tmp_path / "predictions.csv") == [
        ["path", "minerals", *LABELS],
        ["b.jpg", "beryl, blue;Größe °", "0.25", "0.75", "0.5"],
        ["a.jpg", "", "0.1", "0.2", "0.3"],
    ]


def test_failures_have_a_table_of_their_own(tmp_path: Path) -> None:
    write(tmp_path, Failure("a, b.jpg", "decode", 'it said "no", twice'), prediction("c.jpg", 0, 0, 1))
    assert rows(tmp_path / "failures.csv") == [
        ["path", "stage", "reason"],
        ["a, b.jpg", "decode", 'it said "no", twice'],
    ]
    assert [row[0] for row in rows(tmp_path / "predictions.csv")] == ["path", "c.jpg"]


def test_a_clean_run_removes_the_failures_of_the_run_before(tmp_path: Path) -> None:
    write(tmp_path, Failure("a.jpg", "decode", "damaged"))
    write(tmp_path, prediction("a.jpg", 0, 0, 1))
    assert listing(tmp_path) == ["predictions.csv"]


ALL_TABLES = Tables(("jsonl", "parquet"), per_image=True, columns=("size", "captured", "gps"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("tables", [CSV_ONLY, JSON, ALL_TABLES])
def test_a_run_that_breaks_leaves_the_older_tables_and_nothing_else(tmp_path: Path, tables: Tables) -> None:
    if "parquet" in tables.formats:
        pytest.importorskip("pyarrow")
    write(tmp_path, prediction("old.jpg", 0, 0, 1), Failure("bad.jpg", "decode", "damaged"), tables=tables)
    before = tree(tmp_path)

    def broken() -> Iterator[Prediction]:
        yield prediction("new.jpg", 1, 0, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(tmp_path, broken(), contract(), tables)
    assert tree(tmp_path) == before
    assert not [name for name in listing(tmp_path) if name.startswith(".")]


def test_json_lines_hold_failures_in_their_place(tmp_path: Path) -> None:
    good = prediction("good.jpg", 0.25, 0.75, 0.5)
    write(tmp_path, Failure("bad.jpg", "decode", "damaged"), good, tables=JSON)
    assert [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        {"path": "bad.jpg", "failure": {"stage": "decode", "reason": "damaged"}},
        {
            "path": "good.jpg",
            "minerals": ["beryl, blue", "Größe °"],
            "probabilities": {"agate": 0.25, "beryl, blue": 0.75, "Größe °": 0.5},
        },
    ]


def test_excel_gets_semicolons_and_the_same_cells(tmp_path: Path) -> None:
    hostile = (prediction('a;"b".jpg', 0.25, 0.75, 0.5), prediction("new\n.jpg", 1, 0, 0))
    write(tmp_path, *hostile, Failure("bad.jpg", "decode", "damaged"), tables=Tables(("csv-excel",)))
    content = (tmp_path / "predictions.excel.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfpath;minerals;")
    assert content.count(b"\r\n") == 3
    cells = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=";"))
    assert cells[1][2:] == ["0,25", "0,75", "0,5"], "where semicolons separate, 0.25 is read as 25"
    back = [cells[0], *([*row[:2], *map(decimal_point, row[2:])] for row in cells[1:])]
    assert back == rows(tmp_path / "predictions.csv")
    known = ("agate", "beryl, blue", "Größe °")
    ours, theirs = (read_predictions(tmp_path / f"predictions{kind}.csv", known) for kind in ("", ".excel"))
    assert (ours.paths, ours.labels, ours.scores.tolist()) == (theirs.paths, theirs.labels, theirs.scores.tolist())


def test_each_picture_can_have_its_own_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        prediction("/photos/a/1.jpg", 0.25, 0.75, 0.5),
        prediction("../1.jpg", 0, 0, 0),
        Failure("2.jpg", "decode", "damaged"),
        tables=SINGLE,
    )
    folder = tmp_path / "per-image"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.csv")) == [
        "%2E%2E/1.jpg.csv",
        "photos/a/1.jpg.csv",
    ]
    assert rows(folder / "photos/a/1.jpg.csv") == [
        ["mineral", "probability", "present"],
        ["agate", "0.25", "0"],
        ["beryl, blue", "0.75", "1"],
        ["Größe °", "0.5", "1"],
    ]


PARTS = [
    "..",
    ".",
    "...",
    "a",
    "b c",
    "//",
    "/",
    "\\",
    "..\\",
    "C:\\",
    "C:",
    "n" * 300,
    "é" * 200,
    "\udcff",
    "\0",
    "a.jpg.csv",
]


@given(st.lists(st.sampled_from(PARTS)).map("/".join))
@example("..")
@example("/")
@example("")
def test_no_picture_s_own_file_leaves_the_folder_on_any_system(name: str) -> None:
    path = mirrored(name)
    for system in (PurePosixPath, PureWindowsPath):
        inside = system(str(path))
        assert not inside.is_absolute()
        assert not inside.drive
        assert ".." not in inside.parts
        assert inside.parts == path.parts
    assert all(len(os.fsencode(part)) <= 255 for part in path.parts)
    assert "\0" not in str(path)
    assert path.suffix == ".csv"


def test_names_that_lead_outside_are_written_inside(tmp_path: Path) -> None:
    names = ["../../up.jpg", "/etc/passwd", "a.zip/../../b.jpg", "C:\\Windows\\x.jpg", "..\\..\\y.jpg", "..", "n" * 255]
    folder = tmp_path / "deep/er"
    folder.mkdir(parents=True)
    write(folder, *(prediction(name, 0, 0, 0) for name in names), tables=SINGLE)
    assert len(list((folder / "per-image").rglob("*.csv"))) == len(names)
    assert listing(tmp_path) == ["deep"]
    assert listing(tmp_path / "deep") == ["er"]


def test_pictures_that_would_share_a_file_each_get_one(tmp_path: Path) -> None:
    names = ["a.jpg", "/a.jpg", "./a.jpg", "b/c.jpg", "b/c.jpg.csv/d.jpg", "e.jpg.csv/f.jpg", "e.jpg"]
    write(tmp_path, *(prediction(name, 0, 0, 1) for name in names), tables=SINGLE)
    files = sorted(str(path.relative_to(tmp_path / "per-image")) for path in (tmp_path / "per-image").rglob("*.csv"))
    found = [path for path in files if (tmp_path / "per-image" / path).is_file()]
    assert len(found) == len(names)


def test_a_tree_of_single_files_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write(tmp_path, prediction("a.jpg", 0, 0, 1), prediction("b.jpg", 0, 0, 1), tables=SINGLE)
    write(tmp_path, prediction("b.jpg", 0, 1, 0), tables=SINGLE)
    assert listing(tmp_path / "per-image") == ["b.jpg.csv"]
    assert listing(tmp_path) == ["per-image", "predictions.csv"]


def test_leftovers_of_a_kill_are_swept_and_others_files_are_not(tmp_path: Path) -> None:
    write(tmp_path, prediction("a.jpg", 0, 0, 1), tables=SINGLE)
    for name in (".predictions.csv.12ab34cd.part", ".run.json.12ab34cd.part", ".theirs.part", "notes.txt"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".per-image.12ab34cd.part").mkdir()
    (tmp_path / ".per-image.12ab34cd.part/a.jpg.csv").write_text("half")
    (tmp_path / "per-image").rename(tmp_path / ".per-image.old")  # killed between two renames
    sweep(tmp_path)
    assert listing(tmp_path) == [".theirs.part", "notes.txt", "per-image", "predictions.csv"]
    assert listing(tmp_path / "per-image") == ["a.jpg.csv"]


def test_columns_on_request(tmp_path: Path) -> None:
    results = [
        Prediction("a.jpg", np.array([0, 0, 1], np.float32), 640, 480, TAKEN),
        Prediction("b.jpg", np.array([0, 0, 1], np.float32), 4000, 3000, ExifInfo()),
    ]
    write(tmp_path, *results, tables=Tables(("jsonl",), columns=("gps", "size", "captured")))
    assert [row[:7] for row in rows(tmp_path / "predictions.csv")] == [
        ["path", "minerals", "width", "height", "captured", "latitude", "longitude"],
        ["a.jpg", "Größe °", "640", "480", "2024-05-17T14:03:22+02:00", "-12.51", "7.000004"],
        ["b.jpg", "Größe °", "4000", "3000", "", "", ""],
    ]
    first, second = map(json.loads, (tmp_path / "predictions.jsonl").read_text().splitlines())
    assert (first["captured"], first["latitude"], first["width"]) == ("2024-05-17T14:03:22+02:00", -12.51, 640)
    assert (second["captured"], second["longitude"], second["height"]) == (None, None, 3000)


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    name = os.fsdecode(b"not utf-8 \xff.jpg")
    results = [
        Prediction("a.jpg", np.array([0.1, 0.75, 0.5], np.float32), 640, 480, TAKEN),
        Failure("bad.jpg", "decode", "damaged"),
        Prediction(name, np.array([0, 0, 0.25], np.float32), 40, 30, ExifInfo()),
    ]
    write(tmp_path, *results, tables=Tables(("parquet",), columns=("size", "captured", "gps")))
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert table.column_names == rows(tmp_path / "predictions.csv")[0]
    first, second = table.to_pylist()
    assert first["minerals"] == ["beryl, blue", "Größe °"]
    assert np.float32(first["agate"]) == np.float32(0.1)
    assert (first["captured"], first["latitude"]) == (TAKEN.time, TAKEN.latitude)
    assert second["path"] == "not utf-8 \\xff.jpg"
    assert (second["minerals"], second["width"], second["captured"]) == ([], 40, None)
    assert table.schema.metadata[b"mineral_batch.schema"] == b"1"


@pytest.mark.parametrize("count", [0, 4095, 4096, 4097, 9000])
def test_parquet_in_groups_of_rows_loses_none(tmp_path: Path, count: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    results = (prediction(str(index), 0, 0, index / 10_000) for index in range(count))
    write_tables(tmp_path, results, contract(), Tables(("parquet",)))
    table = parquet.read_table(tmp_path / "predictions.parquet")
    assert table["path"].to_pylist() == [str(index) for index in range(count)]
    assert parquet.read_metadata(tmp_path / "predictions.parquet").num_row_groups == -(-count // 4096)


def test_parquet_that_cannot_be_written_is_said_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install .*\[parquet\]"):
        require(Tables(("parquet",)))


def test_what_there_is_so_far(tmp_path: Path) -> None:
    write_partial(tmp_path, [prediction("a.jpg", 0, 0, 1), Failure("b.jpg", "read", "gone")], contract())
    assert [row[0] for row in rows(tmp_path / "predictions.partial.csv")] == ["path", "a.jpg"]
    write(tmp_path, prediction("a.jpg", 0, 0, 1))
    assert listing(tmp_path) == ["predictions.csv"]


def test_tables_of_an_earlier_run_are_kept_up_to_date(tmp_path: Path) -> None:
    write(tmp_path, prediction("a.jpg", 0, 0, 1), tables=Tables(("jsonl",), per_image=True))
    assert CSV_ONLY.including(tmp_path).files == ("predictions.csv", "predictions.jsonl", "per-image")
    assert CSV_ONLY.including(tmp_path / "elsewhere").files == ("predictions.csv",)


@given(arrays(np.float32, 3, elements=st.floats(0, 1, width=32)))
def test_probabilities_read_back_to_a_millionth(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder, Prediction("a.jpg", values, 1, 1), tables=JSON)
    read = [float(text) for text in rows(folder / "predictions.csv")[1][2:]]
    np.testing.assert_allclose(read, values.astype(float), rtol=1e-6, atol=0)
    record = json.loads((folder / "predictions.jsonl").read_text())
    assert list(record["probabilities"].values()) == read


@given(
    values=arrays(np.float32, 3, elements=st.floats(0, 1, width=32)),
    thresholds=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
def test_present_is_at_or_above_the_threshold_most_probable_first(values: np.ndarray, thresholds: list[float]) -> None:
    probabilities = dict(zip(LABELS, values.tolist(), strict=True))
    found = labels_present(list(probabilities.values()), LABELS, thresholds)
    assert set(found) == {label for label, t in zip(LABELS, thresholds, strict=True) if probabilities[label] >= t}
    ranks = [probabilities[label] for label in found]
    assert ranks == sorted(ranks, reverse=True)


def test_a_value_at_its_threshold_is_present() -> None:
    assert labels_present([0.5, 0.49999997, 0.0], LABELS, (0.5, 0.5, 0.0)) == ["agate", "Größe °"]


def test_odd_names_read_back_as_they_were(tmp_path: Path, odd_names: tuple[bytes, ...]) -> None:
    names = [os.fsdecode(name) for name in odd_names]
    results = [result for name in names for result in (prediction(name, 0, 0, 0), Failure(name, "decode", "damaged"))]
    write(tmp_path, *results, tables=JSON)
    for table in ("predictions.csv", "failures.csv"):
        assert [os.fsencode(row[0]) for row in rows(tmp_path / table)[1:]] == list(odd_names)
    lines = (tmp_path / "predictions.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["path"] for line in lines[::2]] == names


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_name_reads_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = os.fsdecode(name.encode("utf-8", "replace"))
    folder = tmp_path_factory.getbasetemp()
    write(folder, prediction(path, 0, 0, 0))
    assert rows(folder / "predictions.csv")[1][0] == path


def test_a_full_disk_is_one_line_and_the_older_table_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, prediction("old.jpg", 0, 0, 1))

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device") as caught:
        write(tmp_path, prediction("new.jpg", 1, 0, 0))
    assert len(str(caught.value).splitlines()) == 1
    assert rows(tmp_path / "predictions.csv")[1][0] == "old.jpg"
    assert listing(tmp_path) == ["predictions.csv"]


def test_a_path_near_the_system_s_limit_costs_its_place_and_not_the_tables(tmp_path: Path) -> None:
    """An image whose own path may be read has a mirrored one below OUTPUT that is too long to be created."""
    names = ["/".join(["n" * 200] * 21) + "/a.jpg", "short.jpg"]
    write(tmp_path, *(prediction(name, 0, 0, 1) for name in names), tables=SINGLE)
    files = sorted(
        path.relative_to(tmp_path / "per-image").as_posix() for path in (tmp_path / "per-image").rglob("*.csv")
    )
    assert len(files) == 2
    assert files[0].startswith("%/")
    assert files[1] == "short.jpg.csv"
    assert [row[0] for row in rows(tmp_path / "predictions.csv")[1:]] == names
