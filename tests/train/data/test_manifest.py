"""The manifest: what is written is read back, and what is wrong is named with its line."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS
from mineral_train.data.labels import label_faults, read_labels
from mineral_train.data.manifest import SPLITS, Manifest, Row, read_manifest, read_table, write_manifest, write_table

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
NAME = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=12).filter(
    lambda name: name not in {".", ".."}
)
LABEL = TEXT.map(str.strip).filter(lambda text: text and ";" not in text)


@st.composite
def manifests(draw: st.DrawFn) -> tuple[list[str], list[str], list[tuple[set[str], str, list[str]]], list[str]]:
    """Labels, file names, and per row its labels, split and extra texts."""
    labels = draw(st.lists(LABEL, min_size=1, max_size=4, unique=True).filter(lambda names: not label_faults(names)))
    names = draw(st.lists(NAME, min_size=1, max_size=6, unique=True))
    other = TEXT.map(str.strip).filter(lambda t: t not in {"path", "labels", "split"})
    columns = draw(st.lists(other, max_size=2, unique=True))
    row = st.tuples(
        st.sets(st.sampled_from(labels)),
        st.sampled_from(SPLITS),
        st.lists(TEXT, min_size=len(columns), max_size=len(columns)),
    )
    return labels, names, [draw(row) for _ in names], columns


@given(manifests(), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_read_gives_back_what_write_was_given(tmp_path: Path, drawn, inside: bool) -> None:
    labels, names, records, columns = drawn
    folder = tmp_path / "photos, odd ü" if inside else tmp_path.parent / "elsewhere"
    rows = tuple(
        Row(folder / name, tuple(sorted(found)), split, dict(zip(columns, extra, strict=True)))
        for name, (found, split, extra) in zip(names, records, strict=True)
    )
    manifest = Manifest(rows, tuple(labels))

    write_manifest(manifest, tmp_path / "manifest.csv")

    assert read_manifest(tmp_path / "manifest.csv", labels) == manifest


def test_images_beside_the_manifest_move_with_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    row = Row(tmp_path / "a" / "x" / "1.jpg", ("gold",), "train")
    write_manifest(Manifest((row,), MINERALS), tmp_path / "a" / "m.csv")

    (tmp_path / "a").rename(tmp_path / "b")

    assert read_manifest(tmp_path / "b" / "m.csv").rows[0].path == tmp_path / "b" / "x" / "1.jpg"
    assert "x/1.jpg,gold,train" in (tmp_path / "b" / "m.csv").read_text()


def manifest_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "m.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_targets_and_rows_of_a_split_go_together(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, "labels,split,path\nb;a,train,1.jpg\n,val,2.jpg\n b ; b ,train,3.jpg\n")

    manifest = read_manifest(path, ["a", "b", "c"])

    assert [row.path.name for row in manifest.select("train")] == ["1.jpg", "3.jpg"]
    np.testing.assert_array_equal(manifest.targets("train"), [[1, 1, 0], [0, 1, 0]])
    assert manifest.targets("val").tolist() == [[False, False, False]]
    assert manifest.targets("test").shape == (0, 3)
    assert manifest.targets().shape == (3, 3)
    with pytest.raises(DataError, match="no split 'dev'; the splits are train, val, test"):
        manifest.select("dev")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert len(read_manifest(manifest_of(tmp_path, "\ufeffpath,labels,split\n1.jpg,gold,train\n")).rows) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,labels\n1.jpg,gold\n",
            "no column 'split', only path, labels; make a manifest from it: mineral-train data",
        ),
        ("path,labels,split\n", "a header and no rows"),
        ("", "no column 'path'"),
        ("path,labels,split\n1.jpg,gold,dev\n", "line 2: split must be one of train, val, test, not 'dev'"),
        ("path,labels,split\n,gold,train\n", "line 2: the path is empty"),
        ("path,labels,split\n1.jpg,gold\n", "line 2: 2 fields where the header has 3"),
        ("path,labels,split\n1.jpg,gold,train,x\n", "line 2: 4 fields where the header has 3"),
        ("path,labels,path,split\n1.jpg,gold,2.jpg,train\n", "duplicate column names: path"),
        ('path,labels,split\n"1\n.jpg",,val\n1.jpg,,train\n1.jpg,,val\n', "line 5: .* was already in line 4"),
        ('path,labels,split\n"1.jpg,gold,train\n', "cannot read .*: unexpected end of data"),
        (
            "path,labels,split\n1.jpg,sulphur;gold,train\n2.jpg,Pyrit,val\n",
            r"not among the paper's 36 minerals: 'Pyrit' \(did you mean 'pyrite'\?\), "
            r"'sulphur' \(did you mean 'sulfur'\?\); .* --labels FILE",
        ),
    ],
)
def test_a_mistake_is_one_line_that_says_where_and_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(manifest_of(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_unknown_labels_are_measured_against_the_set_that_was_given(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, "path,labels,split\n1.jpg,gold,train\n")
    with pytest.raises(DataError, match=r"not among the 2 labels: 'gold' \(did you mean 'old'\?\)"):
        read_manifest(path, ["old", "new"])


def test_columns_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "excel.csv").write_text("Path;LABELS;Note\na.png;gold;x\n", encoding="utf-8-sig")
    header, records = read_table(tmp_path / "excel.csv", ["path", "labels"])
    assert header == ["path", "labels", "Note"]
    assert records == [(2, {"path": "a.png", "labels": "gold", "Note": "x"})]


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b"path,labels,split\nbl\xfctte.jpg,gold,train\n")
    with pytest.raises(DataError, match="must be a CSV file in UTF-8"):
        read_manifest(path)
    with pytest.raises(DataError, match=r"there is no file .*nowhere\.csv"):
        read_manifest(tmp_path / "nowhere.csv")


@pytest.mark.parametrize("label", ["a;b", " a", ""])
def test_a_label_that_could_not_be_read_back_is_not_written(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match="rename it"):
        write_manifest(Manifest((Row(tmp_path / "1.jpg", (label,), "train"),), (label,)), tmp_path / "m.csv")
    assert list(tmp_path.iterdir()) == []


def test_a_table_appears_whole_or_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    write_table(path, ["a"], [["old"]])
    with pytest.raises(DataError, match="not Unicode text"):
        write_table(path, ["a"], [["new"], [os.fsdecode(b"\xff.jpg")]])

    assert path.read_text() == "a\nold\n"
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(DataError, match="No such file or directory; create the folder first"):
        write_table(tmp_path / "none" / "t.csv", ["a"], [])


def test_label_files(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffβ-quartz\n\n  rock, crystal \n", encoding="utf-8")
    assert read_labels(path) == ("β-quartz", "rock, crystal")
    path.write_text("a\nb\na\n")
    with pytest.raises(DataError, match="label 'a' is there twice"):
        read_labels(path)
    path.write_text("\n")
    with pytest.raises(DataError, match="has no names"):
        read_labels(path)
    with pytest.raises(DataError, match="cannot read the labels"):
        read_labels(tmp_path / "none.txt")
