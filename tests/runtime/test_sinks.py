"""Tables: whole or not at all, and read back as they were written."""

from __future__ import annotations

import csv
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mineral_batch import DataError, Failure, ModelContract, Prediction
from mineral_batch.sinks import mirrored, present, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

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


def write(folder: Path, *results: Prediction | Failure, **options: Any) -> None:
    write_tables(folder, results, contract(), **options)


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


@pytest.mark.parametrize("options", [{}, {"json_lines": True}])
def test_a_run_that_breaks_leaves_the_older_tables_and_nothing_else(tmp_path: Path, options: dict[str, bool]) -> None:
    write(tmp_path, prediction("old.jpg", 0, 0, 1), Failure("bad.jpg", "decode", "damaged"), **options)
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}

    def broken() -> Iterator[Prediction]:
        yield prediction("new.jpg", 1, 0, 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tables(tmp_path, broken(), contract(), **options)
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_json_lines_hold_failures_in_their_place(tmp_path: Path) -> None:
    good = prediction("good.jpg", 0.25, 0.75, 0.5)
    write(tmp_path, Failure("bad.jpg", "decode", "damaged"), good, json_lines=True)
    assert [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()] == [
        {"path": "bad.jpg", "failure": {"stage": "decode", "reason": "damaged"}},
        {
            "path": "good.jpg",
            "width": 640,
            "height": 480,
            "minerals": ["beryl, blue", "Größe °"],
            "probabilities": {"agate": 0.25, "beryl, blue": 0.75, "Größe °": 0.5},
        },
    ]


def test_each_picture_can_have_its_own_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        prediction("/photos/a/1.jpg", 0.25, 0.75, 0.5),
        prediction("../1.jpg", 0, 0, 0),
        Failure("2.jpg", "decode", "damaged"),
        per_image=True,
    )
    folder = tmp_path / "per-image"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.csv")) == [
        "__/1.jpg.csv",
        "photos/a/1.jpg.csv",
    ]
    assert rows(folder / "photos/a/1.jpg.csv") == [
        ["mineral", "probability", "present"],
        ["agate", "0.25", "0"],
        ["beryl, blue", "0.75", "1"],
        ["Größe °", "0.5", "1"],
    ]


@given(st.lists(st.sampled_from(["..", ".", "a", "b c", "//", "/"]), min_size=1).map("/".join))
def test_no_picture_s_own_file_leaves_the_folder(name: str) -> None:
    path = mirrored(name + "/x.jpg")
    assert not path.is_absolute()
    assert ".." not in path.parts
    assert path.name == "x.jpg.csv"


def test_progress_is_called_once_a_result(tmp_path: Path) -> None:
    calls: list[None] = []
    results = [prediction("a.jpg", 0, 0, 0), Failure("b.jpg", "decode", "damaged")]
    write_tables(tmp_path, results, contract(), progress=lambda: calls.append(None))
    assert len(calls) == 2


@given(arrays(np.float32, 3, elements=st.floats(0, 1, width=32)))
def test_probabilities_read_back_to_a_millionth(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder, Prediction("a.jpg", values, 1, 1), json_lines=True)
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
    found = present(list(probabilities.values()), contract(thresholds))
    assert set(found) == {label for label, t in zip(LABELS, thresholds, strict=True) if probabilities[label] >= t}
    ranks = [probabilities[label] for label in found]
    assert ranks == sorted(ranks, reverse=True)


def test_a_value_at_its_threshold_is_present() -> None:
    assert present([0.5, 0.49999997, 0.0], contract((0.5, 0.5, 0.0))) == ["agate", "Größe °"]


def test_odd_names_read_back_as_they_were(tmp_path: Path, odd_names: tuple[bytes, ...]) -> None:
    names = [os.fsdecode(name) for name in odd_names]
    results = [result for name in names for result in (prediction(name, 0, 0, 0), Failure(name, "decode", "damaged"))]
    write(tmp_path, *results, json_lines=True)
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
