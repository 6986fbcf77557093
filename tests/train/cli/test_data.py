"""`mineral-train data` as a user meets it: what it writes, prints and refuses."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from mineral_batch.minerals import MINERALS
from mineral_train.cli import main
from mineral_train.data.labels import read_labels
from mineral_train.data.manifest import SPLITS, read_manifest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def download(tmp_path: Path, save_photo) -> Path:
    """Folders as in the public download: three minerals, two images in two folders, one damaged."""
    root = tmp_path / "photos"
    for k in range(24):
        save_photo(root / ("Quartz", "Gold", "Sulphur")[k % 3] / f"{k}.jpg", k)
    shutil.copy(root / "Quartz" / "0.jpg", root / "Gold" / "copy.jpg")
    shutil.copy(root / "Quartz" / "3.jpg", root / "Sulphur" / "copy.jpg")
    (root / "Gold" / "damaged.jpg").write_bytes((root / "Gold" / "1.jpg").read_bytes()[:500])
    return root


def test_folders_become_a_manifest_with_every_image_once(download: Path, tmp_path: Path) -> None:
    result = run(download, "-o", tmp_path / "m.csv", "--split", "50:25:25")

    assert result.exit_code == 3, result.output  # done, but an image could not be read
    manifest = read_manifest(tmp_path / "m.csv")
    assert manifest.labels == MINERALS
    assert len(manifest.rows) == 24
    assert {row.path.name: row.labels for row in manifest.rows if len(row.labels) > 1} == {
        "copy.jpg": ("gold", "quartz"),
        "3.jpg": ("quartz", "sulfur"),
    }
    sizes = [len(manifest.select(split)) for split in SPLITS]
    assert all(abs(size - expected) <= 1 for size, expected in zip(sizes, (12, 6, 6), strict=True))
    assert all(not Path(record["path"]).is_absolute() for record in rows_of(tmp_path / "m.csv"))
    [rejected] = rows_of(tmp_path / "rejected.csv")
    assert Path(rejected["path"]).name == "damaged.jpg"
    assert rejected["stage"] == "decode"
    assert rejected["reason"]


def test_splits_that_are_nearly_empty_are_a_warning(download: Path, tmp_path: Path) -> None:
    (download / "Gold" / "damaged.jpg").unlink()
    said = " ".join(run(download, "-o", tmp_path / "m.csv", "--split", "1:0:0").output.split())
    assert "Warning: test has no image of 3 of 3 labels, so test figures say nothing about them" in said
    assert "Warning: val has no image of 3 of 3 labels, so thresholds and calibration say nothing about them" in said
    assert "Warning" not in run(download, "-o", tmp_path / "m.csv", "--split", "50:25:25").output


def test_the_papers_tables_are_printed_for_the_users_data(download: Path, tmp_path: Path) -> None:
    lines = run(download, "-o", tmp_path / "m.csv", "--split", "50:25:25").output.splitlines()

    table = {words[0]: words[1:] for words in map(str.split, lines) if len(words) == 5}
    manifest = read_manifest(tmp_path / "m.csv")
    assert "33 of 36 labels have no image" in lines
    assert "ruby" not in table
    for k, mineral in enumerate(MINERALS):  # the paper's Table 2
        assert table.get(mineral, ["0"] * 4) == [str(manifest.targets(split)[:, k].sum()) for split in (None, *SPLITS)]
    assert [table[mineral][0] for mineral in ("quartz", "gold", "sulfur")] == ["8", "9", "9"]
    for count in (0, 1, 2):  # the paper's Table 1
        per_split = [manifest.targets(split).sum(axis=1) for split in (None, *SPLITS)]
        assert table[str(count)] == [str((found == count).sum()) for found in per_split]
    assert table["images"][0] == "24"
    assert table["labels"][0] == "26"
    assert any("merged with another row of the same path or bytes: 2" in line for line in lines)
    assert any("cannot be read, left out: 1, see" in line for line in lines)


def test_the_same_seed_writes_the_same_bytes(download: Path, tmp_path: Path) -> None:
    for name, seed, threads in [("a", 1, 1), ("b", 1, 4), ("c", 2, 1)]:
        run(download, "-o", tmp_path / f"{name}.csv", "--seed", seed, "--threads", threads)
    contents = {name: (tmp_path / f"{name}.csv").read_bytes() for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]


def test_all_folder_names_as_labels(download: Path, tmp_path: Path) -> None:
    (download / "Gold" / "damaged.jpg").unlink()
    result = run(download, "-o", tmp_path / "m.csv", "--labels", "folders")
    assert result.exit_code == 0, result.output
    labels = read_labels(tmp_path / "m.labels.txt")
    assert labels == ("Gold", "Quartz", "Sulphur")
    assert len(read_manifest(tmp_path / "m.csv", labels).rows) == 24
    assert "--labels " + str(tmp_path / "m.labels.txt") in result.output
    assert rows_of(tmp_path / "rejected.csv") == []


def test_unknown_folders_stop_the_command_before_anything_is_written(
    download: Path, tmp_path: Path, save_photo
) -> None:
    save_photo(download / "Azurlte" / "x.jpg", 90)
    result = run(download, "-o", tmp_path / "m.csv")
    assert result.exit_code == 1
    assert "Error: " in result.output
    assert "did you mean 'azurite'?" in result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos"]
    assert run(download, "-o", tmp_path / "m.csv", "--ignore-unknown").exit_code == 3
    assert len(read_manifest(tmp_path / "m.csv").rows) == 24


@pytest.fixture
def specimens(tmp_path: Path, save_photo) -> Path:
    """A table of 30 images of 10 specimens, with a recompressed copy of one under another specimen's number."""
    lines = ["file,minerals,specimen,owner"]
    for k in range(30):
        save_photo(tmp_path / f"{k}.jpg", k)
        lines.append(f'{k}.jpg,"{"Sulphur/quartz" if k % 2 else "Gold"}",s{k // 3},"Ö, P."')
    with Image.open(tmp_path / "0.jpg") as image:
        image.resize((60, 45)).save(tmp_path / "copy.jpg", quality=60)
    lines += ["copy.jpg,Gold,s9,", "missing.jpg,Gold,,"]
    table = tmp_path / "own.csv"
    table.write_text("\n".join(lines), encoding="utf-8")
    return table


OWN = ("--path-column", "file", "--labels-column", "minerals", "--separator", "/")


def test_a_table_is_split_with_specimens_and_near_duplicates_together(specimens: Path, tmp_path: Path) -> None:
    result = run(specimens, "-o", tmp_path / "m.csv", *OWN, "--group-column", "specimen", "--split", "3:1:1")

    assert result.exit_code == 3, result.output
    manifest = read_manifest(tmp_path / "m.csv")
    assert len(manifest.rows) == 31
    splits = {row.path.name: row.split for row in manifest.rows}
    for specimen in range(10):
        assert len({splits[f"{3 * specimen + k}.jpg"] for k in range(3)}) == 1
    assert splits["copy.jpg"] == splits["0.jpg"] == splits["27.jpg"]  # the copy links specimens 0 and 9
    assert set(splits.values()) == set(SPLITS)
    assert manifest.rows[0].extra == {"specimen": "s0", "owner": "Ö, P."}
    assert manifest.rows[1].labels == ("quartz", "sulfur")
    assert "near-duplicates of another: 2" in result.output
    assert rows_of(tmp_path / "rejected.csv")[0]["stage"] == "read"


def test_a_split_that_is_kept_stays_and_what_it_tears_apart_is_told(specimens: Path, tmp_path: Path) -> None:
    run(
        specimens,
        "-o",
        tmp_path / "m.csv",
        *OWN,
        "--group-column",
        "none",
        "--split",
        "3:1:1",
        "--duplicate-distance",
        -1,
    )
    first = read_manifest(tmp_path / "m.csv")
    result = run(tmp_path / "m.csv", "-o", tmp_path / "n.csv", "--keep-split", "--group-column", "specimen")

    assert result.exit_code == 0, result.output
    assert read_manifest(tmp_path / "n.csv") == first
    torn = [line for line in result.output.splitlines() if line.startswith("Warning: ")]
    assert len(torn) == 1
    assert "without --keep-split they stay together" in torn[0]


def test_the_column_specimen_is_used_without_being_named(specimens: Path, tmp_path: Path) -> None:
    result = run(specimens, "-o", tmp_path / "m.csv", *OWN, "--split", "3:1:1", "--duplicate-distance", -1)
    assert "images of one specimen stay in one split (column specimen" in result.output
    splits = {row.path.name: row.split for row in read_manifest(tmp_path / "m.csv").rows}
    for specimen in range(10):
        assert len({splits[f"{3 * specimen + k}.jpg"] for k in range(3)}) == 1
    again = run(tmp_path / "m.csv", "-o", tmp_path / "n.csv", "--group-column", "none")
    assert "images of one specimen" not in again.output
    assert "the column split is not kept" in again.output


def test_a_name_that_is_not_unicode_is_rejected_and_the_rest_goes_on(tmp_path: Path, save_photo) -> None:
    save_photo(tmp_path / "p" / "gold" / "1.jpg", 1)
    odd = tmp_path / "p" / "gold" / os.fsdecode(b"bl\xfctte.jpg")
    try:
        save_photo(odd, 2)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert run(tmp_path / "p", "-o", tmp_path / "m.csv").exit_code == 3
    assert [row.path.name for row in read_manifest(tmp_path / "m.csv").rows] == ["1.jpg"]
    assert "its name is not UTF-8; rename the file" in (tmp_path / "rejected.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "no such folder or CSV: nowhere"),
        (["photos", "--keep-split"], 1, "is a folder; columns, separators, --root and --keep-split are for a CSV"),
        (["photos", "--group-column", "x"], 1, "is a folder;"),
        (["photos", "--split", "18:1"], 1, "a split is three shares"),
        (["photos", "--split", "much"], 2, "is not three numbers such as 18:1:1"),
        (["photos", "--labels", "nowhere.txt"], 1, "cannot read the labels"),
        (["missing.csv", "--group-column", "lot"], 1, "no column 'lot' to group by; it has note"),
        (["missing.csv"], 1, "none of the 1 images can be read; the first is"),
        (["missing.csv", "--labels", "folders"], 1, "missing.csv is not a folder"),
    ],
)
def test_mistakes_are_one_line(
    download: Path, tmp_path: Path, monkeypatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "missing.csv").write_text("path,labels,note\nnone.jpg,gold,\n")
    result = run(*arguments, "-o", "m.csv")
    assert result.exit_code == code, result.output
    assert message in result.output
    assert code == 2 or len(result.output.splitlines()) == 1
    assert not (tmp_path / "m.csv").exists()


def test_an_output_in_no_folder_is_one_line(download: Path, tmp_path: Path) -> None:
    result = run(download, "-o", tmp_path / "none" / "m.csv")
    assert result.exit_code == 1
    assert result.output.startswith("Error: cannot write")
    assert "create it first" in result.output


@pytest.mark.photos
def test_real_photographs_keep_their_split(tmp_path: Path) -> None:
    folder = Path(os.environ.get("MINERAL_PHOTOS", Path(__file__).parents[3].parent / "shared" / "photos"))
    if not (folder / "manifest.csv").is_file():
        pytest.skip(f"no photographs: {folder} has no manifest.csv; set MINERAL_PHOTOS")
    records = rows_of(folder / "manifest.csv")[:60]
    table = tmp_path / "some.csv"
    table.write_text("path,labels,split\n" + "".join(f"{r['path']},{r['labels']},{r['split']}\n" for r in records))
    result = run(table, "-o", tmp_path / "m.csv", "--root", folder, "--keep-split")
    assert result.exit_code == 0, result.output
    assert [row.split for row in read_manifest(tmp_path / "m.csv").rows] == [r["split"] for r in records]


def test_a_split_that_leaves_labels_without_test_images_suggests_another(tmp_path: Path, save_photo) -> None:
    for k in range(40):
        save_photo(tmp_path / "photos" / ("gold" if k % 2 else "agate") / f"{k}.jpg", k)
    for split, suggested in (("18:1:1", True), ("50:10:40", False)):
        arguments = ["data", str(tmp_path / "photos"), "-o", str(tmp_path / "m.csv"), "--split", split]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        assert ("--split 70:10:20 gives them more" in result.output) == suggested


def test_a_variety_is_its_species_too_where_that_is_asked_for(tmp_path: Path, save_photo) -> None:
    for index, label in enumerate(("agate", "quartz", "schorl")):
        save_photo(tmp_path / "photos" / label / f"{index}.png", seed=index)
    plain, implied = tmp_path / "plain.csv", tmp_path / "implied.csv"
    for output, options in ((plain, []), (implied, ["--imply-parents"])):
        result = CliRunner().invoke(main, ["data", str(tmp_path / "photos"), "-o", str(output), *options])
        assert result.exit_code == 0, result.output
    assert [row.labels for row in read_manifest(plain).rows] == [("agate",), ("quartz",), ("schorl",)]
    assert [row.labels for row in read_manifest(implied).rows] == [("agate", "quartz"), ("quartz",), ("schorl",)]


def test_a_manifest_that_somebody_edited_stays(download: Path, tmp_path: Path) -> None:
    """So does a file of another origin; the command's own manifest is written again."""
    path = tmp_path / "m.csv"
    path.write_text("mine")
    assert "was not written by mineral-train data" in run(download, "-o", path).output
    path.unlink()
    assert run(download, "-o", path).exit_code == run(download, "-o", path).exit_code == 3
    path.write_text(edited := path.read_text() + "x.jpg,gold,train\n")
    refused = run(download, "-o", path)
    assert refused.exit_code == 1
    assert "has been edited since mineral-train data wrote it" in refused.output
    assert path.read_text() == edited


def test_the_export_of_a_labeling_tool_is_read_as_a_table(tmp_path: Path, save_photo) -> None:
    for k in range(6):
        save_photo(tmp_path / "photos" / f"{k}.jpg", k)
    images = [{"id": k, "file_name": f"photos/{k}.jpg"} for k in range(6)]
    annotations = [{"id": k, "image_id": k, "category_id": k % 2} for k in range(5)]
    categories = [{"id": 0, "name": "Quartz"}, {"id": 1, "name": "gold"}]
    export = tmp_path / "coco.json"
    export.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))

    result = run(export, "-o", tmp_path / "m.csv")

    assert result.exit_code == 0, result.output
    found = {row.path.name: row.labels for row in read_manifest(tmp_path / "m.csv").rows}
    assert found == {f"{k}.jpg": (("gold",) if k % 2 else ("quartz",)) if k < 5 else () for k in range(6)}
