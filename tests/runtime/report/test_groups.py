"""The page groups photographs by class and specimen, answers with broader names, and knows other names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mineral_batch.minerals.pairs import implausible_pairs
from mineral_batch.minerals.table import load_table

from .runs import Page, report, write_csv


def frame() -> dict[str, Any]:
    (found,) = Page(Path("results/report.html")).data["frame"]
    assert isinstance(found, dict)
    return found


def rows() -> list[dict[str, Any]]:
    return Page(Path("results/report.html")).data["rows"]


def test_names_and_classes_of_the_labels(run: Path) -> None:
    report()
    data = frame()
    assert ["Oxides", "class", [0, 3]] in data["broader"]
    assert ["quartz", "species", [0, 3]] in data["broader"]
    assert {"gold", "oro", "elements"} <= {*data["names"][1]}
    assert {"agate", "achat", "agata", "quartz", "oxides"} <= {*data["names"][0]}, "folded"
    page = Page(Path("results/report.html"))
    assert "How many photographs show a mineral of each class" in page.text
    assert ("td", {"class": "words"}) in page.elements, "a list of minerals may be broken into lines"
    assert ("option", {"value": "class:Oxides"}) in page.elements
    assert data["specimens"] == []
    assert ("option", {"value": "specimen"}) not in page.elements


def test_specimens_have_an_answer_of_their_own(run: Path) -> None:
    report("--specimen", r"regex=photos/([ab])")
    data = frame()
    assert [name for name, _ in data["specimens"]] == ["a", "b"]
    assert data["specimens"][0][1] == "agate 90%"
    assert rows()[0]["specimen"][:4] == [0, 1, -1, -1]
    page = Page(Path("results/report.html"))
    assert "2 specimens and 5 photographs of none" in page.text
    assert ("option", {"value": "specimen"}) in page.elements


def test_options_of_the_run_are_those_of_the_page(run: Path) -> None:
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(manifest | {"specimen": "folder", "level": "class"}))
    report()
    assert frame()["specimens"][0][0] == "photos"
    (run / "run.json").write_text(json.dumps(manifest | {"specimen": "gone.csv", "level": "nonsense"}))
    report()
    assert frame()["specimens"] == []


def test_the_answer_is_a_broader_name_where_no_mineral_is_sure(run: Path) -> None:
    table = [["path", "minerals", "agate", "gold", "pyrite", "quartz"]]
    table += [["a.jpg", "", "0.45", "0", "0", "0.45"], ["b.jpg", "agate", "0.9", "0", "0", "0.4"]]
    write_csv(run / "predictions.csv", table)
    report("--level", "species")
    assert rows()[0]["answers"] == {"0": [frame()["broader"].index(["quartz", "species", [0, 3]])]}
    assert "1 where only a group or class is sure" in Page(Path("results/report.html")).text
    report()
    assert rows()[0]["answers"] == {}


def test_the_users_own_table(run: Path) -> None:
    Path("own.csv").write_text("name,species,class,de\nagate,agate,Zierde,Schmuckstein\ngold,gold,Zierde,\n")
    report("--minerals", "own.csv")
    data = frame()
    assert data["broader"] == [["Zierde", "class", [0, 1]]]
    assert data["names"] == [["agate", "schmuckstein", "zierde"], ["gold", "zierde"], ["pyrite"], ["quartz"]]


@pytest.mark.parametrize("words", [("--specimen", "nothing.csv"), ("--minerals", "nothing.csv")])
def test_a_missing_file_is_one_line(run: Path, words: tuple[str, str]) -> None:
    with pytest.raises(AssertionError, match=r"Error: .*nothing\.csv"):
        report(*words)


def test_minerals_that_hardly_occur_together_are_flagged_with_a_source(run: Path) -> None:
    header = ["path", "minerals", "agate", "galena", "ruby"]
    rows = [["a.jpg", "agate;ruby", "0.9", "0", "0.9"], ["b.jpg", "galena;ruby", "0", "0.9", "0.9"]]
    write_csv(run / "predictions.csv", [header, *rows])
    (run / "run.json").unlink()
    report()
    page = Page(Path("results/report.html"))
    assert "corundum and quartz in one photograph: rare together in nature" in page.text
    assert "doi:10.15094/00002536" in page.text
    assert page.data["rows"][0]["implausible"] == [0]
    assert page.data["rows"][0]["found"][0] == [0, 2], "flagged, not corrected"
    assert ("option", {"value": "implausible"}) in page.elements


def test_every_implausible_pair_is_of_two_species_of_the_table() -> None:
    species = {mineral.species for mineral in load_table().values()}
    for pair in implausible_pairs():
        assert {pair.one, pair.other} <= species
        assert pair.reason
        assert "doi:" in pair.source
