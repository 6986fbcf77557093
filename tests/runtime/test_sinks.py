"""Tables: whole or not at all, and read back as they were written."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mineral_batch import DataError, Failure, ModelContract, Prediction
from mineral_batch.sinks import CsvSink, present

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def test_a_clean_run_leaves_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with CsvSink(folder, contract()) as sink:
        sink.write(prediction("b.jpg", 0.25, 0.75, 0.5))
        sink.write(prediction("a.jpg", 0.1, 0.2, 0.3))
        assert listing(folder) == ["failures.csv.unfinished", "predictions.csv.unfinished"]
    assert listing(folder) == ["predictions.csv"]
    assert rows(folder / "predictions.csv") == [
        ["path", "minerals", *LABELS],
        ["b.jpg", "beryl, blue;Größe °", "0.25", "0.75", "0.5"],
        ["a.jpg", "", "0.1", "0.2", "0.3"],
    ]
    assert (sink.written, sink.failed) == (2, 0)


def test_failures_have_a_table_of_their_own(tmp_path: Path) -> None:
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(Failure("a, b.jpg", "decode", 'it said "no", twice'))
        sink.write(prediction("c.jpg", 0, 0, 1))
    assert rows(tmp_path / "failures.csv") == [
        ["path", "stage", "reason"],
        ["a, b.jpg", "decode", 'it said "no", twice'],
    ]
    assert [row[0] for row in rows(tmp_path / "predictions.csv")] == ["path", "c.jpg"]
    assert (sink.written, sink.failed) == (1, 1)


def test_a_clean_run_removes_the_failures_of_the_run_before(tmp_path: Path) -> None:
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(Failure("a.jpg", "decode", "damaged"))
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(prediction("a.jpg", 0, 0, 1))
    assert listing(tmp_path) == ["predictions.csv"]


def test_an_interrupted_run_keeps_its_rows_apart_and_the_older_table_whole(tmp_path: Path) -> None:
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(prediction("old.jpg", 0, 0, 1))
    old = (tmp_path / "predictions.csv").read_bytes()

    def interrupted() -> None:
        with CsvSink(tmp_path, contract()) as sink:
            sink.write(prediction("new.jpg", 1, 0, 0))
            sink.write(Failure("bad.jpg", "decode", "damaged"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "predictions.csv").read_bytes() == old
    assert listing(tmp_path) == ["failures.csv.unfinished", "predictions.csv", "predictions.csv.unfinished"]
    assert rows(tmp_path / "predictions.csv.unfinished")[1][0] == "new.jpg"
    assert rows(tmp_path / "failures.csv.unfinished")[1][0] == "bad.jpg"


def test_flushed_rows_are_there_for_others_to_read(tmp_path: Path) -> None:
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(prediction("new.jpg", 1, 0, 0))
        sink.flush()
        assert rows(tmp_path / "predictions.csv.unfinished")[1][0] == "new.jpg"


@given(arrays(np.float32, 3, elements=st.floats(0, 1, width=32)))
def test_probabilities_read_back_to_a_millionth(tmp_path_factory: pytest.TempPathFactory, values: np.ndarray) -> None:
    folder = tmp_path_factory.getbasetemp() / "values"
    with CsvSink(folder, contract()) as sink:
        sink.write(Prediction("a.jpg", values, 1, 1))
    read = [float(text) for text in rows(folder / "predictions.csv")[1][2:]]
    np.testing.assert_allclose(read, values.astype(float), rtol=1e-6, atol=0)


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
    with CsvSink(tmp_path, contract()) as sink:
        for name in odd_names:
            sink.write(prediction(os.fsdecode(name), 0, 0, 0))
            sink.write(Failure(os.fsdecode(name), "decode", "damaged"))
    for table in ("predictions.csv", "failures.csv"):
        assert [os.fsencode(row[0]) for row in rows(tmp_path / table)[1:]] == list(odd_names)


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_any_name_reads_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = os.fsdecode(name.encode("utf-8", "replace"))
    folder = tmp_path_factory.getbasetemp() / "any"
    with CsvSink(folder, contract()) as sink:
        sink.write(prediction(path, 0, 0, 0))
    assert rows(folder / "predictions.csv")[1][0] == path


def test_a_place_where_no_folder_can_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="choose another folder with -o") as caught:
        CsvSink(tmp_path / "file" / "results", contract())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
@pytest.mark.parametrize("pictures", [1, 5000], ids=["at the end", "in the middle"])
def test_a_full_disk_is_one_line_and_the_older_table_stays(tmp_path: Path, pictures: int) -> None:
    with CsvSink(tmp_path, contract()) as sink:
        sink.write(prediction("old.jpg", 0, 0, 1))
    (tmp_path / "predictions.csv.unfinished").symlink_to("/dev/full")

    def fill() -> None:
        with CsvSink(tmp_path, contract()) as sink:
            for _ in range(pictures):
                sink.write(prediction("new.jpg", 1, 0, 0))

    with pytest.raises(DataError, match="No space left on device"):
        fill()
    assert rows(tmp_path / "predictions.csv")[1][0] == "old.jpg"
