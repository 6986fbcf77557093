"""`mineral-batch deliver` as a user runs it: every format read back by another program, and taken back."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import zipfile
from pathlib import Path
from urllib.parse import quote

import openpyxl
import pytest
from click.testing import CliRunner
from lxml import etree
from PIL import Image
from tqdm import tqdm

from mineral_batch.cli import main
from mineral_batch.deliver.xmp import DC, LR, MB, RDF, keywords
from mineral_batch.images.discover import find_images
from mineral_batch.results.csv import write_csv
from mineral_batch.review.decisions import Decisions

LABELS = ("agate", "galena", "malachite")
NAMES = ("a b.jpg", "deep/ü;=1.png", "deep/c.jpg", "=d.jpg", "new\nline.jpg")
ROWS = ((0.1, 0.9, 0.0), (0.0, 0.1, 0.95), (0.8, 0.7, 0.1), (0.1, 0.2, 0.3), (0.05, 0.0, 0.6))


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["deliver", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + index, 30), (40 * index, 90, 120)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def results(tmp_path: Path, photos: Path) -> Path:
    """Five images, of which a person decided two and was unsure of one."""
    folder = tmp_path / "results"
    folder.mkdir()
    rows = []
    for index, (name, values) in enumerate(zip(NAMES, ROWS, strict=True)):
        called = ";".join(label for label, value in zip(LABELS, values, strict=True) if value >= 0.5)
        place = ("-33.9", "151.2") if index == 0 else ("", "")
        rows.append((str(photos / name), called, "2024-05-17T14:03:22", *place, *values))
    write_csv(folder / "predictions.csv", ("path", "minerals", "captured", "latitude", "longitude", *LABELS), rows)
    model = {"name": "tiny", "sha256": "abc123" * 9, "labels": list(LABELS), "thresholds": [0.5] * 3}
    (folder / "run.json").write_text(json.dumps({"model": model}))
    with Decisions(folder) as decisions:
        decide = decisions.decide
        decide(str(photos / NAMES[1]), "labeled", ["agate", "own name"], machine=["malachite"], reviewer="Änne")
        decide(str(photos / NAMES[2]), "unsure", [], machine=["agate", "galena"], reviewer="Änne")
        decide(str(photos / NAMES[4]), "rejected", ["malachite"], machine=["malachite"], reviewer="Änne")
    return folder


#: What each image shows, and who says so.
EXPECTED = [
    (("galena",), "machine"),
    (("agate", "own name"), "human"),
    ((), "unsure"),
    ((), "machine"),
    ((), "machine"),
]


def items(path: Path, namespace: str, name: str) -> list[str]:
    tree = etree.parse(path)
    return [item.text for item in tree.iterfind(f".//{{{namespace}}}{name}//{{{RDF}}}li")]


def test_workbook_has_the_answers_the_probabilities_and_no_formula(results: Path, tmp_path: Path) -> None:
    text = run(results, "--as", "excel", "-o", tmp_path / "x.xlsx", "--thumbnails", 32)
    assert "5 images: 2 with an answer, 2 decided by people, 1 unsure\n" in text
    book = openpyxl.load_workbook(tmp_path / "x.xlsx")
    assert book.sheetnames == ["Images", "Minerals", "About"]
    header, *rows = [[cell.value for cell in row] for row in book["Images"].iter_rows(min_col=2)]
    assert header[-3:] == list(LABELS)
    assert [(tuple(filter(None, (row[1] or "").split(";"))), row[2]) for row in rows] == EXPECTED
    assert [row[-3:] for row in rows] == [list(values) for values in ROWS]
    assert rows[1][3] == "Änne"
    assert book["Images"]["B2"].hyperlink.target == "photos\\a%20b.jpg"
    assert all(cell.data_type != "f" for row in book["Images"].iter_rows() for cell in row)
    assert book["Images"].freeze_panes == "C2"
    assert book["Images"].auto_filter.ref == "B1:O6"
    assert len(book["Images"]._images) == 5
    minerals = {row[0].value: (row[1].value, row[4].value) for row in book["Minerals"].iter_rows(min_row=2)}
    assert minerals["(none)"][0] == 3
    assert "lead" in minerals["galena"][1]


def semicolons(path: Path) -> list[dict[str, str]]:
    text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
    return list(csv.DictReader(text, delimiter=";"))


def test_semicolons_for_excel(results: Path, tmp_path: Path) -> None:
    run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv")
    content = (tmp_path / "x.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfimage;")
    rows = semicolons(tmp_path / "x.csv")
    assert [(tuple(filter(None, row["minerals"].split(";"))), row["evidence"]) for row in rows] == EXPECTED
    assert [float(row["malachite"].replace(",", ".")) for row in rows] == [values[2] for values in ROWS]
    assert content.count(b"\r\n") == 6


def test_geojson_has_longitude_first_and_counts_the_rest(results: Path, tmp_path: Path) -> None:
    assert "1 image with a place, 4 without" in run(results, "--as", "geojson", "-o", tmp_path / "x.geojson")
    (feature,) = json.loads((tmp_path / "x.geojson").read_text())["features"]
    assert feature["geometry"] == {"type": "Point", "coordinates": [151.2, -33.9]}
    assert feature["properties"]["minerals"] == ["galena"]
    assert feature["properties"]["probabilities"] == {"galena": 0.9}


def test_a_least_probability_takes_the_place_of_the_thresholds(results: Path, tmp_path: Path) -> None:
    write_csv(results / "failures.csv", ("path", "stage", "reason"), [("broken.jpg", "decode", "no image")])
    said = run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--min-probability", 0.95)
    counts = "5 images: 1 with an answer, 2 decided by people, 1 unsure; 1 more could not be read (failures.csv)"
    assert said.splitlines()[0] == counts
    rows = semicolons(tmp_path / "x.csv")
    assert [row["minerals"] for row in rows] == ["", "agate;own name", "", "", ""], "people's answers stay"
    assert rows[1]["model says"] == "malachite"


def test_keywords_are_hierarchical_under_one_root() -> None:
    flat, hierarchical = keywords(["schorl", "own|name"], "Rocks")
    assert flat == ["schorl", "own/name"]
    assert hierarchical == ["Rocks|Silicates|tourmaline supergroup|schorl", "Rocks|own/name"]


def test_sidecars_in_a_tree_hold_keywords_and_evidence(results: Path, photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "xmp"
    assert "5 sidecars new, 0 updated, 0 merged" in run(results, "--as", "xmp", "-o", tree)
    found = {path.name: path for path in tree.rglob("*.xmp")}
    assert len(found) == 5
    one = found["ü;=1.png.xmp"]
    assert items(one, DC, "subject") == ["agate", "own name"]
    assert items(one, LR, "hierarchicalSubject") == ["Mineral|Oxides|quartz|agate", "Mineral|own name"]
    assert etree.parse(one).findtext(f".//{{{MB}}}evidence") == "human"
    assert items(one, MB, "machine") == ["malachite"]
    assert not list(photos.rglob("*.xmp"))
    before = {path: path.read_bytes() for path in tree.rglob("*.xmp")}
    assert "0 sidecars new, 5 updated, 0 merged" in run(results, "--as", "xmp", "-o", tree)
    assert {path: path.read_bytes() for path in tree.rglob("*.xmp")} == before
    assert "the answers were taken out of 5 sidecars" in run(results, "--as", "xmp", "-o", tree, "--undo")
    assert not tree.exists()
    said = run(results, "--as", "xmp", "-o", tree, "--undo", code=1)
    assert "nothing to undo" in said
    assert "--undo --beside" in said


FOREIGN = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag><rdf:li>holiday</rdf:li><rdf:li>galena</rdf:li>
</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_a_sidecar_that_is_there_is_merged_and_restored(results: Path, photos: Path) -> None:
    """The user's own keyword `galena` stays when ours go."""
    path = photos / "a b.jpg.xmp"
    path.write_text(FOREIGN)
    assert "4 sidecars new, 0 updated, 1 merged" in run(results, "--as", "xmp", "--beside")
    assert "0 sidecars new, 5 updated, 0 merged" in run(results, "--as", "xmp", "--beside")
    assert items(path, DC, "subject") == ["holiday", "galena"]
    assert items(path, LR, "hierarchicalSubject") == ["Mineral|Sulfides and sulfosalts|galena group|galena"]
    assert b'Rating="4"' in path.read_bytes()
    run(results, "--as", "xmp", "--beside", "--undo")
    parser = etree.XMLParser(remove_blank_text=True)
    assert etree.tostring(etree.parse(path, parser), method="c14n2") == etree.tostring(
        etree.fromstring(FOREIGN, parser), method="c14n2"
    )
    assert [file.name for file in photos.rglob("*.xmp")] == ["a b.jpg.xmp"]


@pytest.mark.parametrize("content", [b"", b"no xml", b"<a/>", b"\xff\xd8\xff"])
def test_what_is_no_xmp_is_left_alone(content: bytes, results: Path, photos: Path) -> None:
    path = photos / "a b.jpg.xmp"
    path.write_bytes(content)
    text = run(results, "--as", "xmp", "--beside", code=1)
    assert "is not XMP" in text
    assert len(text.splitlines()) == 1
    assert path.read_bytes() == content


def test_entities_of_a_hostile_sidecar_are_not_expanded(results: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    path = photos / "a b.jpg.xmp"
    path.write_text(f'<!DOCTYPE x [<!ENTITY s SYSTEM "{tmp_path}/secret">]>{FOREIGN.replace("holiday", "&s;")}')
    CliRunner().invoke(main, ["deliver", str(results), "--as", "xmp", "--beside"])
    assert ">secret<" not in path.read_text()


def test_only_so_many_rows_have_a_thumbnail(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mineral_batch.deliver.sheets.MOST_THUMBNAILS", 2)
    text = run(results, "--as", "excel", "-o", tmp_path / "x.xlsx", "--thumbnails", 32)
    assert "Thumbnails: in the first 2 rows only" in text
    sheet = openpyxl.load_workbook(tmp_path / "x.xlsx")["Images"]
    assert [image.anchor._from.row for image in sheet._images] == [1, 2]
    assert sheet.max_row == 6
    assert "Thumbnails" not in run(results, "--as", "excel", "-o", tmp_path / "x.xlsx")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (zipfile.LargeZipFile("Files count would require ZIP64 extensions"), "larger than its format can be"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_a_workbook_that_cannot_be_written_is_one_line(
    error: Exception, said: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise error

    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr("xlsxwriter.workbook.ZipFile.write", refuse)
    text = run(results, "--as", "excel", "-o", tmp_path / "x.xlsx", code=1)
    assert said in text
    assert len(text.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*x.xlsx*"))
    assert not list(scratch.iterdir()), "nothing stays behind in the folder for temporary files"


def test_images_that_would_share_a_sidecar_are_refused(results: Path, photos: Path) -> None:
    table = results / "predictions.csv"
    table.write_text(table.read_text().replace("deep/c.jpg", "deep/ü;=1.jpg"))
    text = run(results, "--as", "xmp", "--beside", "--adobe-names", code=1)
    assert "would share the sidecar" in text
    assert not list(photos.rglob("*.xmp"))


@pytest.mark.skipif(not shutil.which("exiftool"), reason="exiftool is not installed (libimage-exiftool-perl)")
def test_exiftool_reads_the_sidecars(results: Path, tmp_path: Path) -> None:
    run(results, "--as", "xmp", "-o", tmp_path / "xmp")
    path = next((tmp_path / "xmp").rglob("a b.jpg.xmp"))
    done = subprocess.run(["exiftool", "-j", path], capture_output=True, check=True)
    (record,) = json.loads(done.stdout)
    assert record["Subject"] == "galena"
    assert record["HierarchicalSubject"].endswith("|galena")
    assert "Warning" not in record


@pytest.mark.parametrize("link", ["symbolic", "hard", "copy"])
def test_folders_are_made_once_and_taken_back(link: str, results: Path, photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    assert "6 files made, 0 already there" in run(results, "--as", "folders", "-o", tree, "--link", link)
    folders = {path.parent.name: 0 for path in tree.rglob("*.*g")}
    assert set(folders) == {"galena", "agate", "own name", "_unsure", "_none"}
    one = next((tree / "agate").iterdir())
    assert one.read_bytes() == (photos / NAMES[1]).read_bytes()
    assert one.is_symlink() == (link == "symbolic")
    assert one.samefile(photos / NAMES[1]) == (link != "copy")
    assert list(find_images([tree])) == [], "a later predict would read the photographs twice"
    assert "0 files made, 6 already there: " in run(results, "--as", "folders", "-o", tree, "--link", link)
    fewer = run(results, "--as", "folders", "-o", tree, "--link", link, "--min-probability", 0.95)
    assert "1 file made, 5 already there, 1 of an earlier delivery removed: " in fewer
    assert "1 file made, 5 already there, 1 of an earlier delivery removed: " in run(
        results, "--as", "folders", "-o", tree, "--link", link
    )
    own = tree / "galena" / "own.txt"
    own.write_text("mine")
    assert "6 files removed" in run(results, "--as", "folders", "-o", tree, "--undo")
    assert [path.name for path in tree.rglob("*") if path.is_file()] == ["own.txt"]
    assert len(list(photos.rglob("*.*g"))) == 5


def test_folders_follow_what_people_decide(results: Path, photos: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run(results, "--as", "folders", "-o", tree)
    with Decisions(results) as decisions:
        decisions.decide(str(photos / NAMES[0]), "labeled", ["malachite"], machine=["galena"], reviewer="B")
    run(results, "--as", "folders", "-o", tree)
    assert not (tree / "galena").exists()
    assert len(list((tree / "malachite").iterdir())) == 1


def test_a_file_of_somebody_elses_is_not_overwritten(results: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    run(results, "--as", "folders", "-o", tree)
    one = next((tree / "galena").iterdir())
    run(results, "--as", "folders", "-o", tree, "--undo")
    one.parent.mkdir(parents=True)
    one.write_text("mine")
    assert "holds other files" in run(results, "--as", "folders", "-o", tree, code=1)
    assert one.read_text() == "mine"


def test_photographs_that_are_gone_are_counted(results: Path, photos: Path, tmp_path: Path) -> None:
    (photos / NAMES[0]).unlink()
    assert "1 image not found as files" in run(results, "--as", "folders", "-o", tmp_path / "tree")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--as", "excel", "--undo"], "--undo is for xmp and folders"),
        (["--as", "xmp", "--beside", "-o", "x"], "omit -o"),
        (["--as", "folders", "--undo", "-o", "nowhere"], "nothing to undo"),
        (["--as", "excel", "--join", "x.csv"], "--on COLUMN belong together"),
        (["--as", "excel", "--join", "x.csv", "--on", "y"], "there is no file x.csv"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], problem: str, results: Path) -> None:
    result = CliRunner().invoke(main, ["deliver", str(results), *arguments])
    assert result.exit_code in (1, 2)
    assert problem in result.output


def test_a_full_disk_leaves_the_earlier_file(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.xlsx"
    run(results, "--as", "excel", "-o", path)
    earlier = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    text = run(results, "--as", "excel", "-o", path, code=1)
    assert text == f"Error: cannot write {path}: No space left on device; free some space\n"
    assert path.read_bytes() == earlier


def members(path: Path) -> dict[str, list[dict[str, str]]]:
    with zipfile.ZipFile(path) as package:
        texts = {name: package.read(name).decode() for name in package.namelist() if name.endswith(".csv")}
    return {name: list(csv.DictReader(io.StringIO(text, newline=""))) for name, text in texts.items()}


def test_a_data_package_holds_the_answers_of_the_model_and_of_people(results: Path, tmp_path: Path) -> None:
    path = tmp_path / "dp.zip"
    assert "5 specimens" in run(results, "--as", "darwin-core", "-o", path)
    tables = members(path)
    assert len(tables["material.csv"]) == len(tables["media.csv"]) == len(tables["material-media.csv"]) == 5
    names = [row["geologicalMaterialNames"] for row in tables["geological-material.csv"]]
    assert names == ["galena", "agate | own name"]
    title = {row["media_pk"]: row["title"].rsplit("/", 1)[-1] for row in tables["media.csv"]}
    answers = {(title[row["media_fk"]], row["identifiedBy"][:4]): row for row in tables["identification.csv"]}
    human, machine = answers["ü;=1.png", "Änne"], answers["ü;=1.png", "tiny"]
    assert (human["identifiedBy"], human["isAcceptedIdentification"]) == ("Änne", "true")
    assert (machine["verbatimIdentification"], machine["isAcceptedIdentification"]) == ("malachite", "false")
    assert machine["identifiedBy"] == "tiny (abc123abc123)"
    assert machine["identificationRemarks"] == "probability by the model: malachite 0.950"
    assert answers["a b.jpg", "tiny"]["identificationVerificationStatus"] == "unverified"
    before = path.read_bytes()
    run(results, "--as", "darwin-core", "-o", path)
    assert path.read_bytes() == before


def test_the_keys_of_a_data_package_agree(results: Path, tmp_path: Path) -> None:
    """What its validator checks: every table has the columns of its schema, every key points to a row."""
    run(results, "--as", "darwin-core", "-o", tmp_path / "dp.zip")
    tables = members(tmp_path / "dp.zip")
    with zipfile.ZipFile(tmp_path / "dp.zip") as package:
        descriptor = json.loads(package.read("datapackage.json"))
    for resource in descriptor["resources"]:
        rows, schema = tables[resource["path"]], resource["schema"]
        assert list(rows[0]) == [field["name"] for field in schema["fields"]]
        for field in schema["fields"]:
            assert field["dcterms:isVersionOf"].startswith("http://")
        for key in schema.get("primaryKey", []):
            assert len({row[key] for row in rows}) == len(rows)
        for key in schema.get("foreignKeys", []):
            (own,), (other,) = key["fields"], key["reference"]["fields"]
            targets = {row[other] for row in tables[f"{key['reference']['resource']}.csv"]}
            assert {row[own] for row in rows} <= targets


UUID = r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


@pytest.mark.parametrize(("form", "core"), [("darwin-core", "material.csv"), ("dwca", "occurrence.csv")])
def test_identifiers_name_no_path_of_this_machine(form: str, core: str, results: Path, tmp_path: Path) -> None:
    """Stable UUIDs, or a prefix of the collection's own with the number; every one of them once."""
    text = run(results, "--as", form, "-o", tmp_path / "x.zip")
    assert "--id-prefix makes them those of your collection" in text
    tables = members(tmp_path / "x.zip")
    cells = [cell for rows in tables.values() for row in rows for cell in row.values()]
    assert not [cell for cell in cells if str(results.parent) in cell]
    key = next(iter(tables[core][0]))
    plain = [row[key] for row in tables[core]]
    assert all(re.fullmatch(UUID, one) for one in plain)
    assert len(set(plain)) == len(plain)
    run(results, "--as", form, "-o", tmp_path / "y.zip")
    assert members(tmp_path / "y.zip") == tables, "the same at any time"
    prefix, rule = "https://museum.example.org/object/", r"regex=([^/]+)\.(?:png|jpg)"
    text = run(results, "--as", form, "-o", tmp_path / "z.zip", "--id-prefix", prefix, "--specimen", rule)
    assert "--id-prefix" not in text
    own = members(tmp_path / "z.zip")
    named = [row["catalogNumber"] for row in own[core] if row["catalogNumber"]]
    assert [row[key] for row in own[core] if row["catalogNumber"]] == [prefix + quote(name, safe="") for name in named]
    assert len(named) > 1
    assert all(row[key].startswith(prefix) and " " not in row[key] for row in own[core])
    keys = {cell for row in own["multimedia.csv" if form == "dwca" else "media.csv"] for cell in row.values()}
    assert not keys & {cell for row in tables.get("media.csv", []) for cell in row.values() if "uuid" in cell}
    assert "--id-prefix is for" in run(results, "--as", "excel", "--id-prefix", prefix, code=2)


@pytest.mark.slow
def test_frictionless_accepts_the_data_package(results: Path, tmp_path: Path) -> None:
    """Without the address of the profile, which it would fetch."""
    frictionless = pytest.importorskip("frictionless")
    run(results, "--as", "darwin-core", "-o", tmp_path / "dp.zip")
    with zipfile.ZipFile(tmp_path / "dp.zip") as package:
        package.extractall(tmp_path / "dp")
    descriptor = tmp_path / "dp" / "datapackage.json"
    content = json.loads(descriptor.read_text())
    assert content.pop("profile") == "https://rs.tdwg.org/dwc-dp/1.0/dwc-dp-profile.json"
    descriptor.write_text(json.dumps(content))
    report = frictionless.validate(str(descriptor))
    assert report.valid, report.flatten(["type", "note"])
    table = tmp_path / "dp" / "material-media.csv"
    table.write_text(table.read_text() + "nothing,nothing\n")
    (error,) = {kind for (kind,) in frictionless.validate(str(descriptor)).flatten(["type"])}
    assert error == "foreign-key", "the check can fail"


def test_an_archive_describes_its_files(results: Path, tmp_path: Path) -> None:
    assert "5 specimens" in run(results, "--as", "dwca", "-o", tmp_path / "a.zip")
    tables = members(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        meta = etree.fromstring(archive.read("meta.xml"))
    space = "{http://rs.tdwg.org/dwc/text/}"
    ids = {row["id"] for row in tables["occurrence.csv"]}
    assert [child.tag for child in meta] == [f"{space}core", f"{space}extension", f"{space}extension"]
    for part in meta:
        rows = tables[part.findtext(f"{space}files/{space}location")]
        header = list(rows[0])
        for field in part.iterfind(f"{space}field"):
            assert field.get("term").rsplit("/", 1)[1] == header[int(field.get("index"))]
        assert {row[header[0]] for row in rows} <= ids


def geopackage(results: Path, path: Path) -> list[tuple[object, ...]]:
    assert "1 image with a place, 4 without" in run(results, "--as", "gpkg", "-o", path)
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
        extent = connection.execute("SELECT min_x, min_y, max_x, max_y FROM gpkg_contents").fetchone()
        assert extent == (151.2, -33.9, 151.2, -33.9)
        return connection.execute("SELECT minerals, probability, evidence FROM photographs").fetchall()
    finally:
        connection.close()


def test_geopackage_is_a_sound_database(results: Path, tmp_path: Path) -> None:
    assert geopackage(results, tmp_path / "x.gpkg") == [("galena", 0.9, "machine")]
    assert geopackage(results, tmp_path / "x.gpkg") == [("galena", 0.9, "machine")], "written again"
    assert [path.name for path in tmp_path.glob("*gpkg*")] == ["x.gpkg"]


@pytest.mark.slow
def test_gdal_reads_the_geopackage_and_the_geojson(results: Path, tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio", reason="pyogrio has GDAL")
    for form in ("gpkg", "geojson"):
        path = tmp_path / f"x.{form}"
        run(results, "--as", form, "-o", path)
        info = pyogrio.read_info(path)
        assert (info["features"], info["crs"], info["geometry_type"]) == (1, "EPSG:4326", "Point")
        assert tuple(info["total_bounds"]) == (151.2, -33.9, 151.2, -33.9)


@pytest.fixture
def inventory(results: Path, photos: Path, tmp_path: Path) -> Path:
    """The table of images has numbers in their names: one in the inventory, one twice in it, two at once, none."""
    table = results / "predictions.csv"
    text = table.read_text()
    for name, new in zip(
        NAMES[:4], ("X-90175_1.jpg", "deep/x-90175.png", "deep/B.7.jpg", "X-90175 Y-2.jpg"), strict=True
    ):
        text = text.replace(f"{photos}/{name}", f"{photos}/{new}")
    table.write_text(text)
    path = tmp_path / "inventory.csv"
    path.write_text("Inv;Fundort\nX-90175;Tsumeb\n90175;no\nY-2;Ural\nB.7;one\nB.7;two\nZ-9;Siegen\n")
    return path


def test_an_inventory_is_joined_by_the_numbers_in_paths(results: Path, inventory: Path, tmp_path: Path) -> None:
    text = run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--join", inventory, "--on", "Inv")
    assert "2 images joined" in text
    assert "1 without a number, 2 ambiguous; 3 rows of the inventory without an image" in text
    assert "1 number of" in text
    rows = semicolons(tmp_path / "x.csv")
    assert [row["Fundort"] for row in rows] == ["Tsumeb", "Tsumeb", "", "", ""]
    run(results, "--as", "darwin-core", "-o", tmp_path / "dp.zip", "--join", inventory, "--on", "Inv")
    tables = members(tmp_path / "dp.zip")
    assert [row["catalogNumber"] for row in tables["material.csv"]] == ["X-90175", "", "", ""]
    assert all(re.fullmatch(UUID, row["materialEntityID"]) for row in tables["material.csv"])
    assert len(tables["media.csv"]) == 5


def test_a_pattern_says_where_the_number_is(results: Path, inventory: Path, tmp_path: Path) -> None:
    arguments = ("--as", "csv-excel", "-o", tmp_path / "x.csv", "--join", inventory, "--on", "Inv")
    assert "1 image joined" in run(results, *arguments, "--match", r"(Y-\d+)")
    assert "is not a regular expression" in run(results, *arguments, "--match", "(", code=2)


def test_the_collection_has_its_own_names(results: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("mineral;name\ngalena;Bleiglanz\n")
    run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--names", names)
    assert semicolons(tmp_path / "x.csv")[0]["minerals"] == "Bleiglanz"
    run(results, "--as", "xmp", "-o", tmp_path / "xmp", "--names", names)
    one = next((tmp_path / "xmp").rglob("a b.jpg.xmp"))
    assert items(one, LR, "hierarchicalSubject") == ["Mineral|Sulfides and sulfosalts|galena group|Bleiglanz"]
    names.write_text("mineral;name\ngold;Gold\n")
    assert "gold: no label of the model" in run(results, "--as", "xmp", "--names", names, code=1)


@pytest.mark.parametrize("form", ["excel", "csv-excel", "darwin-core", "dwca"])
def test_a_delivery_replaces_its_own_file_but_nobody_elses(form: str, results: Path, tmp_path: Path) -> None:
    """Neither a file that was there before, nor one that somebody has worked in since."""
    path = tmp_path / "out"
    path.write_text("mine")
    assert "already exists and was not written by deliver" in run(results, "--as", form, "-o", path, code=1)
    assert path.read_text() == "mine"
    path.unlink()
    run(results, "--as", form, "-o", path)
    run(results, "--as", form, "-o", path)
    path.write_bytes(path.read_bytes() + b" ")
    edited = path.read_bytes()
    assert "has been edited since deliver wrote it" in run(results, "--as", form, "-o", path, code=1)
    assert path.read_bytes() == edited


@pytest.mark.parametrize(
    "form", ["excel", "csv-excel", "xmp", "embed", "folders", "geojson", "gpkg", "darwin-core", "dwca"]
)
def test_the_progress_bar_ends_at_its_end(
    form: str, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[tqdm[None]] = []

    class Bar(tqdm):  # type: ignore[type-arg]
        def __init__(self, **options: object) -> None:
            super().__init__(**(options | {"disable": False, "file": io.StringIO()}))
            bars.append(self)

    monkeypatch.setattr("mineral_batch.cli.deliver.tqdm", Bar)
    run(results, "-o", tmp_path / "x", *(["--as", "xmp", "--embed"] if form == "embed" else ["--as", form]))
    (bar,) = bars
    assert bar.n == bar.total >= len(NAMES)
