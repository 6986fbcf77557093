"""Label tables as people keep them, and the matching of their paths with those of images."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch import MINERALS
from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths, name_labels, read_labels, require_known

ROWS = [("a.jpg", ("quartz", "gold")), ("b.jpg", ()), ("c.jpg", ("pyrite",))]


def table(tmp_path, content):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        b"path,labels\na.jpg,quartz;gold\nb.jpg,\nc.jpg,pyrite\n",
        b"path,labels\r\na.jpg, quartz ; gold \r\nb.jpg,\r\nc.jpg,pyrite\r\n",
        b'\xef\xbb\xbfpath;labels\r\na.jpg;"quartz;gold"\r\nb.jpg;\r\nc.jpg;pyrite\r\n',
        b'sep=;\npath;labels\na.jpg;"quartz;gold"\nb.jpg;\nc.jpg;pyrite\n',
        b"path\tlabels\na.jpg\tquartz;gold\nb.jpg\t\nc.jpg\tpyrite\n",
        "path\tlabels\na.jpg\tquartz;gold\nb.jpg\t\nc.jpg\tpyrite\n".encode("utf-16"),
        b"File Name,note,Minerals\na.jpg,x,quartz;gold\nb.jpg,,\nc.jpg,y,pyrite\n",
        b"image,path,labels\n1,a.jpg,quartz;gold\n2,b.jpg,\n3,c.jpg,pyrite\n",
    ],
    ids=["plain", "Windows", "semicolons", "sep=", "tabs", "UTF-16", "other headers", "path before image"],
)
def test_a_spreadsheets_table_reads_as_the_plain_one(tmp_path, content):
    rows = read_labels(table(tmp_path, content))
    assert [(row.path, row.labels) for row in rows] == ROWS
    assert {row.split for row in rows} == {""}


def test_lines_are_those_of_the_file(tmp_path):
    rows = read_labels(table(tmp_path, b'sep=,\npath,labels,Split\n"a\n.jpg",gold,val\n\nb.jpg,,test\n'))
    assert [(row.path, row.split, row.line) for row in rows] == [("a\n.jpg", "val", 4), ("b.jpg", "test", 6)]


def test_other_names_of_labels_become_those_of_the_label_set(tmp_path):
    path = table(tmp_path, b'path,labels\na,Amethyst;QUARTZ;Sulphur\nb,"gold, pyrite"\nc,granite\nd,quartz\n')
    rows, renamed = name_labels(read_labels(path), MINERALS)
    assert [row.labels for row in rows] == [("quartz", "sulfur"), ("gold", "pyrite"), ("granite",), ("quartz",)]
    assert renamed == {"Amethyst": "quartz", "QUARTZ": "quartz", "Sulphur": "sulfur", "gold, pyrite": "gold; pyrite"}
    require_known(rows, MINERALS, path, "are unknown")  # granite is another mineral: no mistake


OTHERS = "feldspar calcite chlorite granite garnet quartzite dioptase rock opaque other"


def test_a_misspelled_label_stops_and_another_mineral_does_not(tmp_path):
    path = table(tmp_path, f"path,labels\na,gold\nb,{OTHERS.replace(' ', ';')}\nc,qartz;flourite\n".encode())
    rows = read_labels(path)
    with pytest.raises(DataError) as caught:
        require_known(rows, MINERALS, path, "are unknown")
    assert str(caught.value) == (
        f"{path} has labels that are unknown and that look misspelled: 'qartz' (line 4, did you mean 'quartz'?), "
        "'flourite' (line 4, did you mean 'fluorite'?); correct them, or count them as other minerals "
        "with --ignore-unknown"
    )
    require_known(rows, MINERALS, path, "are unknown", ignore_unknown=True)
    require_known(rows[:2], MINERALS, path, "are unknown")


def test_a_table_without_any_known_label_is_refused(tmp_path):
    path = table(tmp_path, b"path,labels\na,drawer 7\nb,drawer 8\nc,\n")
    with pytest.raises(
        DataError, match=r"only labels that are unknown: 'drawer 7' \(line 2\), .*; there are agate, al"
    ):
        require_known(read_labels(path), MINERALS, path, "are unknown", ignore_unknown=True)


def test_none_is_no_label(tmp_path):
    rows = read_labels(table(tmp_path, b"path,labels\na,none\nb, _None \nc,gold;none\n"))
    assert [row.labels for row in rows] == [(), (), ("gold", "none")]


def test_a_label_of_ones_own_with_a_comma_is_one_label(tmp_path):
    path = table(tmp_path, 'path,labels\na,"grün, gelb"\n'.encode())
    assert name_labels(read_labels(path), ["grün, gelb", "blau"])[0][0].labels == ("grün, gelb",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column path, labels; its first line has nothing"),
        (b"name,labels\nx,gold\n", "has no column path; its first line has name, labels"),
        (b"path,labels,path\nx,gold,x\n", "duplicate column names: path"),
        (b"path,labels\nx,gold\ny\n", "line 3: 1 fields where the header has 2"),
        (b"path,labels\nx,gold\ny,\nx,gold\n", "names x twice, in lines 2 and 4"),
        (b'path,labels\n"x,gold\n', "cannot read .*labels.csv: unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_line(tmp_path, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read_labels(table(tmp_path, content))
    assert "\n" not in str(caught.value)


# --- paths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicted", "labeled"),
    [
        ("a.jpg", "a.jpg"),
        ("photos/images/a.jpg", "images/a.jpg"),
        ("images/a.jpg", "/data/photos/images/a.jpg"),
        ("../photos/./a.jpg", "photos/a.jpg"),
        ("C:\\photos\\a.jpg", "photos/a.jpg"),
        ("photos/caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("/data/a.jpg", "/data//x/../a.jpg"),
    ],
)
def test_paths_match_by_whole_components_from_the_end(predicted, labeled):
    assert match_paths([predicted], [labeled]).index == {labeled: 0}


@pytest.mark.parametrize(
    ("predicted", "labeled"),
    [("photos/ba.jpg", "a.jpg"), ("a.JPG", "a.jpg"), ("a/b.jpg", "c/d.jpg")],
)
def test_other_paths_do_not_match(predicted, labeled):
    assert match_paths([predicted], [labeled]).index == {}


def test_equal_paths_and_longer_ends_come_first():
    assert match_paths(["a.jpg", "sub/a.jpg"], ["sub/a.jpg", "a.jpg"]).index == {"a.jpg": 0, "sub/a.jpg": 1}
    assert match_paths(["r/a.jpg", "r/sub/a.jpg"], ["sub/a.jpg", "a.jpg"]).index == {"a.jpg": 0, "sub/a.jpg": 1}
    assert match_paths(["sub/a.jpg", "a.jpg"], ["/r/a.jpg", "/r/sub/a.jpg"]).index == {"/r/a.jpg": 1, "/r/sub/a.jpg": 0}


def test_a_path_that_has_its_equal_matches_nothing_else():
    assert match_paths(["r/a.jpg"], ["r/a.jpg", "a.jpg"]).index == {"r/a.jpg": 0}
    assert match_paths(["r/a.jpg", "a.jpg"], ["r/a.jpg"]).index == {"r/a.jpg": 0}


@pytest.mark.parametrize(
    ("predicted", "labeled"),
    [(["x/a.jpg", "y/a.jpg"], ["a.jpg"]), (["a.jpg"], ["x/a.jpg", "y/a.jpg"])],
)
def test_an_ambiguous_match_names_both(predicted, labeled):
    with pytest.raises(DataError, match=r"a\.jpg matches both x/a\.jpg and y/a\.jpg"):
        match_paths(predicted, labeled)


@given(
    st.sets(st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map("/".join), min_size=1),
    st.lists(st.sampled_from("xyz"), max_size=2),
    st.booleans(),
)
def test_a_common_prefix_on_either_side_changes_no_match(paths, prefix, on_predictions):
    paths = sorted(paths)
    longer = ["/".join([*prefix, path]) for path in paths]
    predicted, labeled = (longer, paths) if on_predictions else (paths, longer)
    assert match_paths(predicted, labeled).index == {label: i for i, label in enumerate(labeled)}


def test_a_renamed_folder_matches_by_file_name_and_is_reported():
    images = ["new/a.jpg", "new/b.jpg", "x/c.jpg", "new/d.jpg"]
    matches = match_paths(images, ["old/a.jpg", "b.jpg", "y/c.jpg"])
    assert matches.index == {"old/a.jpg": 0, "b.jpg": 1, "y/c.jpg": 2}
    assert matches.by_name == ("old/a.jpg", "y/c.jpg")
    assert "2 labeled paths matched by file name only" in matches.note(images)
    assert "for example old/a.jpg is new/a.jpg" in matches.note(images)
    assert match_paths(["a.jpg"], ["a.jpg"]).note(["a.jpg"]) is None


@pytest.mark.parametrize(
    ("images", "labeled"),
    [(["x/a.jpg", "y/a.jpg"], ["z/a.jpg"]), (["z/a.jpg"], ["x/a.jpg", "y/a.jpg"])],
)
def test_a_file_name_that_comes_twice_matches_nothing(images, labeled):
    assert match_paths(images, labeled).index == {}


def test_a_name_is_ambiguous_even_if_one_of_the_two_has_its_match():
    assert match_paths(["x/a.jpg", "y/a.jpg"], ["x/a.jpg", "z/a.jpg"]).index == {"x/a.jpg": 0}


def test_files_whose_names_differ_only_in_how_accents_are_composed_stay_apart() -> None:
    composed, decomposed = (unicodedata.normalize(form, "p/Größe.jpg") for form in ("NFC", "NFD"))
    twins = [decomposed, composed, "p/a.jpg"]
    assert match_paths(twins, [composed, decomposed]).index == {composed: 1, decomposed: 0}
    assert match_paths(twins, [decomposed]).index == {decomposed: 0}
    assert match_paths(["p/a.jpg", decomposed], [composed]).index == {composed: 1}
    assert match_paths([decomposed], [composed, decomposed]).index == {decomposed: 0}
