"""Folders and tables of photographs as rows: names, unknown names, images that lie in several folders."""

import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths, name_labels, read_labels
from mineral_batch.minerals import MINERALS, canonical, other_names
from mineral_batch.minerals.table import load_table
from mineral_train.data.folders import TableFormat, folder_names, merge_identical, rows_from_folders, rows_from_table
from mineral_train.data.manifest import Row
from mineral_train.data.source import split_column


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("quartz", "quartz"),
        ("Agate", "agate"),
        ("SULPHUR", "sulfur"),
        ("Haematite", "hematite"),
        ("Zinc_Blende", "sphalerite"),
        ("rock-crystal", "quartz"),
        ("Agate_01", "agate"),
        ("03 agate", "agate"),
        ("agate (2)", "agate"),
        ("12. Native Gold", "gold"),
        ("rubies", "ruby"),
        ("garnets", None),
        ("Rubís", "ruby"),
        ("Cuarzo", "quartz"),
        ("HÄMATIT", "hematite"),
        ("sel gemme", "halite"),
        ("Flussspat_07", "fluorite"),
        ("diopside", "diopside"),
        ("tourmaline", None),
        ("corundum", None),
        ("calcite", None),
        ("", None),
        ("36", None),
    ],
)
def test_names_that_people_use(name: str, label: str | None) -> None:
    if name == "Rubís":
        assert canonical(name, [*MINERALS, "rubi"]) == "rubi"  # an accent is no other letter
    else:
        assert canonical(name, MINERALS) == label


@given(
    st.sampled_from(MINERALS), st.integers(0, 99), st.sampled_from(["{0}", "{0}_{1}", "{1} {0}", "{0}-({1})", " {0}s"])
)
def test_every_mineral_is_known_however_its_folder_is_numbered(mineral: str, number: int, form: str) -> None:
    assert canonical(form.format(mineral.title(), number), MINERALS) == mineral


def test_other_names_lead_to_minerals_of_the_table_and_hide_none() -> None:
    assert set(other_names().values()) <= set(load_table())
    assert not set(other_names()) & set(load_table())


def test_a_label_set_of_ones_own_comes_first() -> None:
    assert canonical("amethyst", ["amethyst", "quartz"]) == "amethyst"
    assert canonical("Sulphur", ["sulphur", "sulfur"]) == "sulphur"
    assert canonical("amethyst", ["gold"]) is None
    assert canonical("type 2", ["type 1", "type 2"]) == "type 2"
    assert canonical("Type 3", ["type 1", "type 2"]) is None


def test_one_folder_per_mineral(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "Quartz" / "deep" / "b.jpg", 1)
    save_photo(tmp_path / "Quartz" / "a.JPG", 2)
    save_photo(tmp_path / "sulphur" / "c.png", 3)
    save_photo(tmp_path / ".cache" / "d.jpg", 4)
    (tmp_path / "Quartz" / "notes.txt").write_text("not an image")

    rows = rows_from_folders(tmp_path, MINERALS)

    found = [(row.path.relative_to(tmp_path).as_posix(), row.labels) for row in rows]
    assert found == [("Quartz/a.JPG", ("quartz",)), ("Quartz/deep/b.jpg", ("quartz",)), ("sulphur/c.png", ("sulfur",))]
    assert all(row.path.is_absolute() for row in rows)


def test_a_folder_named_after_no_label_is_an_error_unless_it_is_to_be_ignored(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "quartz" / "a.jpg", 1)
    save_photo(tmp_path / "Azurlte" / "b.jpg", 2)
    save_photo(tmp_path / "calcite" / "c.jpg", 3)

    with pytest.raises(DataError, match=r"'Azurlte' \(did you mean 'azurite'\?\), 'calcite'.*; .*--ignore-unknown"):
        rows_from_folders(tmp_path, MINERALS)
    assert [row.labels for row in rows_from_folders(tmp_path, MINERALS, ignore_unknown=True)] == [("quartz",)]
    assert [row.labels for row in rows_from_folders(tmp_path, folder_names(tmp_path))] == [
        ("Azurlte",),
        ("calcite",),
        ("quartz",),
    ]


def test_a_folder_without_images_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one folder of images per mineral"):
        rows_from_folders(tmp_path, MINERALS)
    (tmp_path / "gold").mkdir()
    with pytest.raises(DataError, match="no images in folders named after minerals"):
        rows_from_folders(tmp_path, MINERALS)
    with pytest.raises(DataError, match="is not a folder"):
        rows_from_folders(tmp_path / "none", MINERALS)


def test_images_in_several_folders_become_one_row_with_all_labels(tmp_path: Path, save_photo) -> None:
    both = save_photo(tmp_path / "quartz" / "1.jpg", 1)
    (tmp_path / "gold").mkdir()
    shutil.copy(both, tmp_path / "gold" / "other name.jpg")
    save_photo(tmp_path / "gold" / "2.jpg", 2)

    rows = merge_identical(rows_from_folders(tmp_path, MINERALS), MINERALS)

    assert [(row.path.name, row.labels) for row in rows] == [
        ("2.jpg", ("gold",)),
        ("other name.jpg", ("gold", "quartz")),
    ]


def test_rows_of_one_path_are_merged_even_where_the_file_is_missing(tmp_path: Path) -> None:
    rows = [Row(tmp_path / "1.jpg", (label,), "", {"n": label}) for label in ("quartz", "gold")]
    rows += [Row(tmp_path / "2.jpg", ("ruby",), "")]
    merged = merge_identical(rows, MINERALS)
    assert [(row.path.name, row.labels) for row in merged] == [("1.jpg", ("gold", "quartz")), ("2.jpg", ("ruby",))]
    assert merged[0].extra == {"n": "quartz"}


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_with_its_own_columns(tmp_path: Path) -> None:
    path = table(
        tmp_path, 'file,minerals,split,owner\n1.jpg,"Sulphur | quartz|Quartz",Validation,"Ö, P."\n2.jpg,,training,\n'
    )
    columns = TableFormat("file", "minerals", "|", "split", tmp_path / "photos")

    rows = rows_from_table(path, MINERALS, columns)

    assert rows == [
        Row(tmp_path / "photos" / "1.jpg", ("sulfur", "quartz"), "val", {"owner": "Ö, P."}),
        Row(tmp_path / "photos" / "2.jpg", (), "train", {"owner": ""}),
    ]
    assert {row.split for row in rows_from_table(path, MINERALS, TableFormat("file", "minerals", "|"))} == {""}


def test_columns_and_cells_go_by_the_names_that_evaluate_knows(tmp_path: Path) -> None:
    text = 'Photo,Mineral,Subset\n1.jpg,"quartz, gold",test\n2.jpg,malachite|azurite,\n3.jpg,none,val\n'
    text += '/data/local-files/?d=photos/4%20a.jpg,"{""choices"": [""gold"", ""Pyrites""]}",val\n'
    rows = rows_from_table(table(tmp_path, text), MINERALS, TableFormat(split_column="split"))
    assert [(row.path.relative_to(tmp_path).as_posix(), row.labels, row.split) for row in rows] == [
        ("1.jpg", ("quartz", "gold"), "test"),
        ("2.jpg", ("malachite", "azurite"), "train"),
        ("3.jpg", (), "val"),
        ("photos/4 a.jpg", ("gold", "pyrite"), "val"),
    ]
    assert split_column(table(tmp_path, text), TableFormat()) == ("split", "")


def test_unknown_labels_of_a_table_are_an_error_or_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "path,labels\n1.jpg,quartz;calcite\n2.jpg,Pyrites;calcite\n3.jpg,calcite\n")
    with pytest.raises(DataError, match=r"not in the label set: 'calcite'.*--ignore-unknown"):
        rows_from_table(path, MINERALS)
    rows = rows_from_table(path, MINERALS, ignore_unknown=True)
    assert [row.labels for row in rows] == [("quartz",), ("pyrite",), ()]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("where,labels\n1.jpg,\n", TableFormat(), "no column 'path', only where, labels; name it with --path-column"),
        ("path,kind\n1.jpg,\n", TableFormat(), "no column 'labels'.*--labels-column"),
        ("path,labels\n1.jpg,\n", TableFormat(split_column="split"), "no column 'split'.*--keep-split"),
        ("path,labels,split\n1.jpg,,5\n", TableFormat(split_column="split"), "line 2: split must be one of"),
        ("path,labels\n,gold\n", TableFormat(), "line 2: the path is empty"),
        ("path,labels\n", TableFormat(), "a header and no rows"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(tmp_path: Path, text: str, columns: TableFormat, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_from_table(table(tmp_path, text), MINERALS, columns)


def test_a_folder_of_none_holds_images_without_labels(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "gold" / "1.jpg", 1)
    save_photo(tmp_path / "None" / "2.jpg", 2)
    rows = rows_from_folders(tmp_path, ["gold"])
    assert {row.path.name: row.labels for row in rows} == {"1.jpg": ("gold",), "2.jpg": ()}


def test_all_faults_of_a_table_are_named_at_once(tmp_path: Path) -> None:
    text = "path,labels,split\n1.jpg,calcite,train\n,gold,train\n2.jpg,gold\n3.jpg,gold,dev\n"
    with pytest.raises(DataError) as caught:
        rows_from_table(table(tmp_path, text), MINERALS, TableFormat(split_column="split"))
    said = str(caught.value)
    assert "4 faults" in said
    assert "\n" not in said
    for part in ("line 4: 2 fields", "line 3: the path is empty", "line 5: split must be", "'calcite'"):
        assert part in said, said


def test_a_table_is_read_as_evaluate_reads_it(tmp_path: Path) -> None:
    """The names of columns that people use, a spreadsheet's separator, several minerals in one cell."""
    path = tmp_path / "excel.csv"
    path.write_text('Image;Minerals;Subset\n1.jpg;"Amethyst, GOLD";x\n2.jpg;PYRITE;y\n', encoding="utf-8-sig")
    rows = rows_from_table(path, MINERALS)
    assert [(row.path.name, row.labels) for row in rows] == [("1.jpg", ("quartz", "gold")), ("2.jpg", ("pyrite",))]
    judged = name_labels(read_labels(path), MINERALS)[0]
    assert [(row.path, row.labels) for row in judged] == [(row.path.name, row.labels) for row in rows]


def test_images_of_a_renamed_folder_are_found_as_evaluate_finds_them(
    tmp_path: Path, save_photo, caplog: pytest.LogCaptureFixture
) -> None:
    there = save_photo(tmp_path / "kept" / "same.jpg", 1)
    by_name = save_photo(tmp_path / "new name" / "1.jpg", 2)
    by_end = save_photo(tmp_path / "new name" / "set" / "2.jpg", 3)
    save_photo(tmp_path / "new name" / "same.jpg", 4)  # its name is there twice: nothing says which is meant
    composed, decomposed = (unicodedata.normalize(form, "Größe.jpg") for form in ("NFC", "NFD"))
    accent = save_photo(tmp_path / "kept" / decomposed, 5)
    lines = ["kept/same.jpg,gold", "old/1.jpg,gold", "set/2.jpg,ruby", "old/same.jpg,ruby", f"kept/{composed},gold"]
    path = table(tmp_path, "\n".join(["path,labels", *lines, "old/gone.jpg,gold"]) + "\n")
    rows = rows_from_table(path, MINERALS)
    found = [there, by_name, by_end, tmp_path / "old" / "same.jpg", accent, tmp_path / "old" / "gone.jpg"]
    assert [row.path for row in rows] == found
    assert "3 of the images are not where" in caplog.text
    assert "for example old/1.jpg is new name/1.jpg" in caplog.text
    matches = match_paths([str(p) for p in tmp_path.rglob("*.jpg")], [line.partition(",")[0] for line in lines])
    assert {*matches.index} == {line.partition(",")[0] for line in lines} - {"old/same.jpg"}


def test_a_missing_path_that_means_two_images_is_an_error(tmp_path: Path, save_photo) -> None:
    for folder in "ab":
        save_photo(tmp_path / folder / "set" / "1.jpg", ord(folder))
    with pytest.raises(DataError, match=r"matches both a/set/1\.jpg and b/set/1\.jpg"):
        rows_from_table(table(tmp_path, "path,labels\nset/1.jpg,gold\n"), MINERALS)
