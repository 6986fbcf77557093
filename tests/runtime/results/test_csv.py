"""The one reader and writer of CSV: what is written reads back, whatever the cells hold."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch import DataError
from mineral_batch.results.csv import csv_line, csv_records, formula_safe_text, open_csv, repeated, write_csv

CELLS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4)


@given(CELLS)
def test_a_line_is_what_python_writes_unless_python_cannot_read_it(cells: list[str]) -> None:
    if any("\r" in cell for cell in cells):
        assert next(csv.reader(io.StringIO(csv_line(cells) + "\n", newline=""), strict=True)) == cells
        return
    expected = io.StringIO(newline="")
    csv.writer(expected, lineterminator="\n").writerow(cells)
    assert csv_line(cells) + "\n" == expected.getvalue()


@given(st.lists(CELLS.map(lambda cells: (cells * 3)[:3]), max_size=4))
def test_a_table_reads_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = tmp_path_factory.getbasetemp() / "t.csv"
    write_csv(path, ["a", "b", "c"], rows)
    with open_csv(path, ["a"]) as table:
        assert [cells for _, cells in table] == rows
    assert [cells for _, cells in csv_records(path)][1:] == rows


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"odd \xff.jpg")
    write_csv(tmp_path / "t.csv", ["path", "size"], [[name, 3], ["b", None]])
    assert (tmp_path / "t.csv").read_bytes() == b"path,size\nodd \xff.jpg,3\nb,\n"
    with open_csv(tmp_path / "t.csv") as table:
        assert list(table.dicts()) == [{"path": name, "size": "3"}, {"path": "b", "size": ""}]


@pytest.mark.parametrize(("text", "safe"), [("=1+1", "'=1+1"), ("@x", "'@x"), ("plain", "plain"), ("", "")])
def test_free_text_is_no_formula(text: str, safe: str) -> None:
    assert formula_safe_text(text) == safe


def test_a_file_that_is_missing_or_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    missing = "name the output of explain"
    with pytest.raises(DataError, match=missing), open_csv(tmp_path / "no.csv", missing=missing):
        pass
    with pytest.raises(DataError, match="create the folder first"):
        write_csv(tmp_path / "no/t.csv", ["a"], [])


def test_repeated_columns_are_found_without_comparing_each_with_all() -> None:
    """Models may have 20,000 labels; their tables took 25 seconds here."""
    compared = []

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    names = [Name(f"label {number}") for number in range(1_000)]
    assert repeated([*names, Name("label 7"), Name("label 3")]) == ["label 3", "label 7"]
    assert len(compared) < 10_000


def test_all_rows_of_another_width_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n1\n" + "1,2,3\n" * 9 + '"never closed\n', encoding="utf-8")
    with pytest.raises(DataError) as caught, open_csv(path) as opened:
        list(opened)
    text = str(caught.value)
    assert "line 3: 1 fields where the header has 2, line 4: 3 fields where the header has 2" in text
    assert "and 2 more; a cell with a separator in it needs quotes" in text
    assert "\n" not in text
    faults: list[str] = []
    path.write_text("a,b\n1,2\n1\n3,4\n", encoding="utf-8")
    with open_csv(path) as opened:
        assert [line for line, _ in opened.rows(faults)] == [2, 4]
    assert [fault.split(";")[0] for fault in faults] == ["line 3: 1 fields where the header has 2"]
