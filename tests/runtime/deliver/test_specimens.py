"""`mineral-batch deliver --specimen` and `--level`: one answer from several photographs, and broader names."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

import openpyxl
import pytest
from click.testing import CliRunner
from lxml import etree
from PIL import Image

from mineral_batch.cli import main
from mineral_batch.deliver.xmp import DC, LR, MB, RDF
from mineral_batch.results.csv import write_csv
from mineral_batch.review.decisions import Decisions

LABELS = ("elbaite", "galena", "malachite", "schorl")
ROWS = {
    "a/X-10_1.jpg": (0.0, 0.40, 0.1, 0.0),
    "a/X-10_2.jpg": (0.0, 0.62, 0.1, 0.0),
    "b/Y-20 (1).jpg": (0.45, 0.0, 0.1, 0.48),
    "b/Y-20 (2).jpg": (0.40, 0.0, 0.1, 0.45),
    "c/Z-33.jpg": (0.0, 0.0, 0.9, 0.0),
    "c/loose.jpg": (0.0, 0.9, 0.0, 0.0),
}
GALENA = 1 - (0.60 * 0.38) ** (1 / 2)  # what specimens.csv says of X-10


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["deliver", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three specimens and a photograph without a number; a person looked at Z-33."""
    folder = tmp_path / "results"
    folder.mkdir()
    rows = []
    for number, (name, values) in enumerate(ROWS.items()):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (40 * number, 90, 120)).save(path)
        called = ";".join(label for label, value in zip(LABELS, values, strict=True) if value >= 0.5)
        place = ("", "") if number == 0 else ("46.5", "7.9")
        rows.append((f"photos/{name}", called, f"2024-05-1{number}T10:00:00", *place, *values))
    write_csv(folder / "predictions.csv", ("path", "minerals", "captured", "latitude", "longitude", *LABELS), rows)
    model = {"name": "tiny", "sha256": "abc123" * 9, "labels": list(LABELS), "thresholds": [0.5] * 4}
    (folder / "run.json").write_text(json.dumps({"model": model}))
    with Decisions(folder) as decisions:
        decisions.decide("photos/c/Z-33.jpg", "labeled", ["azurite"], machine=["malachite"], reviewer="Ada")
        decisions.decide("photos/b/Y-20 (1).jpg", "rejected", ["galena"], machine=[], reviewer="Ada")
        decisions.decide("photos/b/Y-20 (2).jpg", "unsure", [], machine=[], reviewer="Bo")
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    text = io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")
    return list(csv.DictReader(text, delimiter=";"))


def items(path: Path, namespace: str, name: str) -> list[str]:
    return [item.text for item in etree.parse(path).iterfind(f".//{{{namespace}}}{name}//{{{RDF}}}li")]


def test_a_row_per_specimen_with_the_answer_of_all_its_photographs(results: Path, tmp_path: Path) -> None:
    text = run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--specimen", "catalog")
    assert "4 specimens of 6 images: 3 with an answer, 1 decided by people, 1 unsure\n" in text
    one, two, three, loose = rows_of(tmp_path / "x.csv")
    assert (one["specimen"], one["photographs"], one["minerals"], one["evidence"]) == ("X-10", "2", "galena", "machine")
    assert float(one["galena"].replace(",", ".")) == pytest.approx(GALENA, rel=1e-6)
    assert one["images"] == "photos/a/X-10_1.jpg;photos/a/X-10_2.jpg"
    assert (two["evidence"], two["decided by"], two["minerals"]) == ("unsure", "Ada, Bo", "")
    assert (three["minerals"], three["evidence"], three["model says"]) == ("azurite", "human", "malachite")
    assert (loose["specimen"], loose["minerals"]) == ("photos/c/loose.jpg", "galena")


def test_workbook_map_and_data_package_have_specimens(results: Path, tmp_path: Path) -> None:
    rule = ("--specimen", "catalog")
    run(results, "--as", "excel", "-o", tmp_path / "x.xlsx", *rule, "--thumbnails", 16, "--photos", tmp_path)
    book = openpyxl.load_workbook(tmp_path / "x.xlsx")
    assert book.sheetnames[0] == "Specimens"
    assert [cell.value for cell in book["Specimens"]["B"]] == ["specimen", "X-10", "Y-20", "Z-33", "photos/c/loose.jpg"]
    assert len(book["Specimens"]._images) == 4
    text = run(results, "--as", "geojson", "-o", tmp_path / "x.geojson", *rule)
    assert "4 specimens with a place, 0 without" in text
    feature = json.loads((tmp_path / "x.geojson").read_text())["features"][0]
    assert feature["properties"]["path"] == "X-10"
    assert feature["properties"]["images"] == ["photos/a/X-10_1.jpg", "photos/a/X-10_2.jpg"]
    run(results, "--as", "darwin-core", "-o", tmp_path / "x.zip", *rule)
    with zipfile.ZipFile(tmp_path / "x.zip") as package:
        tables = {
            name: list(csv.DictReader(io.StringIO(package.read(name).decode())))
            for name in package.namelist()
            if name.endswith(".csv")
        }
    assert [row["catalogNumber"] for row in tables["material.csv"]] == ["X-10", "Y-20", "Z-33", ""]
    number = {row["materialEntity_pk"]: row["catalogNumber"] for row in tables["material.csv"]}
    assert [row["createDate"] for row in tables["media.csv"]] == [f"2024-05-1{n}T10:00:00" for n in range(6)]
    assert len(tables["material-media.csv"]) == 6
    found = {(number[row["materialEntity_fk"]], row["identifiedBy"]): row for row in tables["identification.csv"]}
    assert found["Z-33", "Ada"]["isAcceptedIdentification"] == "true"
    machine = found["X-10", "tiny (abc123abc123)"]
    assert (machine["media_fk"], machine["verbatimIdentification"]) == ("", "galena")
    assert machine["identificationRemarks"] == f"probability by the model: galena {GALENA:.3f}"


@pytest.mark.parametrize("embed", [(), ("--embed",)])
def test_every_photograph_gets_the_answer_of_its_specimen(
    embed: tuple[str, ...], results: Path, tmp_path: Path
) -> None:
    run(results, "--as", "xmp", "-o", tmp_path / "x", "--specimen", "catalog", "--photos", tmp_path, *embed)
    if embed:
        with Image.open(tmp_path / "x/photographs/photos/a/X-10_2.jpg") as image:
            (tmp_path / "x.xmp").write_bytes(image.info["xmp"])
    else:
        (tmp_path / "x/photos/a/X-10_2.jpg.xmp").rename(tmp_path / "x.xmp")
    assert items(tmp_path / "x.xmp", DC, "subject") == ["galena"]
    assert etree.parse(tmp_path / "x.xmp").findtext(f".//{{{MB}}}specimen") == "X-10"


def test_folders_hold_all_photographs_of_a_specimen(results: Path, tmp_path: Path) -> None:
    run(results, "--as", "folders", "-o", tmp_path / "x", "--specimen", "catalog", "--photos", tmp_path)
    assert len(list((tmp_path / "x/galena").iterdir())) == 3
    assert len(list((tmp_path / "x/_unsure").iterdir())) == 2


def test_numbers_of_the_inventory_can_be_the_specimens(results: Path, tmp_path: Path) -> None:
    (tmp_path / "inventory.csv").write_text("Inv,place\nX-10,Tsumeb\nY-20,Elba\n")
    joined = ("--join", tmp_path / "inventory.csv", "--on", "Inv")
    run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", *joined, "--specimen", "inventory")
    found = {row["specimen"]: row["place"] for row in rows_of(tmp_path / "x.csv")}
    assert found == {"X-10": "Tsumeb", "Y-20": "Elba", "photos/c/Z-33.jpg": "", "photos/c/loose.jpg": ""}
    assert "--join CSV" in run(results, "--as", "csv-excel", "--specimen", "inventory", code=2)


def test_broader_names_where_no_mineral_is_sure(results: Path, tmp_path: Path) -> None:
    (results / "review.sqlite").unlink()
    run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--level", "group")
    answers = {row["image"]: row["minerals"] for row in rows_of(tmp_path / "x.csv")}
    assert answers["photos/b/Y-20 (1).jpg"] == "tourmaline supergroup"
    assert answers["photos/a/X-10_1.jpg"] == ""
    run(results, "--as", "xmp", "-o", tmp_path / "x", "--level", "group")
    sidecar = tmp_path / "x/photos/b/Y-20 (1).jpg.xmp"
    assert items(sidecar, LR, "hierarchicalSubject") == ["Mineral|Silicates|tourmaline supergroup"]
    run(results, "--as", "darwin-core", "-o", tmp_path / "x.zip", "--level", "group")
    with zipfile.ZipFile(tmp_path / "x.zip") as package:
        rows = list(csv.DictReader(io.StringIO(package.read("geological-material.csv").decode())))
    kinds = {row["geologicalMaterialNames"]: row["geologicalMaterialNameTypes"] for row in rows}
    assert kinds == {"tourmaline supergroup": "group", "malachite": "species", "galena": "species"}


def test_the_users_own_table_says_what_is_broader(results: Path, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("name,species,group,class\nelbaite,elbaite,turmalin,\nschorl,schorl,turmalin,\n")
    table = ("--minerals", tmp_path / "own.csv")
    (results / "review.sqlite").unlink()
    run(results, "--as", "csv-excel", "-o", tmp_path / "x.csv", "--level", "class", *table)
    answers = {row["image"]: row["minerals"] for row in rows_of(tmp_path / "x.csv")}
    assert answers["photos/b/Y-20 (1).jpg"] == "turmalin"
    assert "has no column name or species" in run(
        results, "--as", "csv-excel", "--minerals", results / "predictions.csv", code=1
    )


def test_the_answer_of_the_model_says_what_a_person_made_of_it(results: Path, tmp_path: Path) -> None:
    with Decisions(results) as decisions:
        decisions.decide("photos/c/loose.jpg", "labeled", ["galena"], machine=["galena"], reviewer="Ada")
    run(results, "--as", "dwca", "-o", tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        tables = {
            name: list(csv.DictReader(io.StringIO(archive.read(f"{name}.csv").decode())))
            for name in ("identification", "multimedia")
        }
    title = {row["coreid"]: row["title"] for row in tables["multimedia"]}
    found = {
        (title[row["coreid"]], row["identifiedBy"][:4]): row["identificationVerificationStatus"]
        for row in tables["identification"]
    }
    assert found == {
        ("photos/a/X-10_2.jpg", "tiny"): "unverified",
        ("photos/c/Z-33.jpg", "Ada"): "confirmed by a person",
        ("photos/c/Z-33.jpg", "tiny"): "rejected by Ada",
        ("photos/c/loose.jpg", "Ada"): "confirmed by a person",
        ("photos/c/loose.jpg", "tiny"): "confirmed by Ada",
    }
