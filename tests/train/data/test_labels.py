"""Label sets: what cannot be a label, and names that only look different."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from mineral_batch.errors import DataError
from mineral_train.data.labels import label_faults, read_labels, split_labels
from mineral_train.data.manifest import read_manifest


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("quartz", "Quartz"), "label 'Quartz' looks like label 'quartz'"),
        (("béryl", unicodedata.normalize("NFD", "béryl")), "looks like label"),
        (("gold", "gold"), "label 'gold' is there twice"),
        (("a;b",), "contains ';'"),
        (("rock\u2028crystal",), "contains a line break"),
        (("tab\tbed",), "control character"),
        (("none",), "is reserved"),
        (("_None",), "is reserved"),
        (("",), "is empty"),
        ((" gold",), "blanks around it"),
        (("\ud800",), "control character"),
    ],
)
def test_what_cannot_be_a_label_set_says_why(labels: tuple[str, ...], message: str) -> None:
    (fault,) = label_faults(labels)
    assert message in fault


def test_ordinary_names_are_labels() -> None:
    assert label_faults(("quartz", "β-quartz", "rock, crystal", "Straße", "黄铁矿")) == []


def test_a_line_separator_does_not_split_a_label_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("rock\u2028crystal\r\ngold\r\n", encoding="utf-8")
    with pytest.raises(DataError, match="contains a line break"):
        read_labels(path)


def test_all_faults_of_a_manifest_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("path,labels,split\na.jpg,gold,dev\nb/../a.jpg,gold,val\n,pyrit,train\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_manifest(path, ["gold", "Gold"])
    text = str(caught.value)
    assert "5 faults" in text
    assert "\n" not in text
    for words in ("looks like label", "line 2: split must be", "line 3:", "line 4: the path is empty", "'pyrit'"):
        assert words in text


def test_none_in_a_cell_means_no_label(tmp_path: Path) -> None:
    assert split_labels("none") == split_labels(" _None ") == split_labels("") == ()
    path = tmp_path / "m.csv"
    path.write_text("path,labels,split\na.jpg,none,train\n", encoding="utf-8")
    assert read_manifest(path).rows[0].labels == ()
