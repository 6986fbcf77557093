"""What is known about the minerals: the table, names in five languages, broader names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.cli import main
from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS, canonical, other_names
from mineral_batch.minerals.table import LANGUAGES, LEVELS, lineage, load_table, name_at, names_at


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["minerals", *arguments])
    return result.exit_code, result.output


def test_every_label_has_its_facts_and_its_species_a_row() -> None:
    table = load_table()
    assert set(MINERALS) <= set(table)
    for mineral in table.values():
        assert all((mineral.formula, mineral.mineral_class, mineral.dana_class))
        assert re.fullmatch(r"\d\.[A-Z]{2}\.\d\d[a-z]?", mineral.strunz)
        assert mineral.species in table
        assert not table[mineral.species].is_variety
        assert all(mineral.synonyms[language] for language in LANGUAGES if language != "en")
        assert bool(mineral.ima_symbol) <= (not mineral.is_variety), "only species have a symbol"
        assert bool(mineral.danger) <= bool(mineral.hazard)


@pytest.mark.parametrize(
    ("label", "broader"),
    [
        ("agate", ("quartz", "Oxides")),
        ("ruby", ("corundum", "hematite group", "Oxides")),
        ("demantoid", ("andradite", "garnet supergroup", "Silicates")),
        ("schorl", ("tourmaline supergroup", "Silicates")),
        ("quartz", ("Oxides",)),
        ("amazonite of one's own", ()),
    ],
)
def test_lineage(label: str, broader: tuple[str, ...]) -> None:
    assert lineage(label) == broader


def test_levels_cover_every_label_once() -> None:
    for level in LEVELS:
        covered = names_at(MINERALS, level)
        assert sorted(label for labels in covered.values() for label in labels) == sorted(MINERALS)
    assert names_at(MINERALS, "group")["tourmaline supergroup"] == ("elbaite", "schorl")
    assert name_at("ruby", "species") == name_at("sapphire", "species") == "corundum"
    assert name_at("azurite", "group") == "azurite", "without a group its species stands in"


@given(st.sampled_from(sorted(other_names().items())))
def test_every_name_in_use_leads_to_its_mineral(pair: tuple[str, str]) -> None:
    name, mineral = pair
    assert canonical(name.upper(), load_table()) == mineral


def test_the_command_finds_a_mineral_by_any_of_its_names() -> None:
    code, text = run("Zinnober", "CUARZO")
    assert code == 0
    assert "HgS" in text and "mercury" in text and "SiO2" in text  # noqa: PT018
    assert run("granate")[0] == 1
    code, text = run("quarx")
    assert (code, "did you mean quartz?" in text) == (1, True)
    code, text = run()
    assert len(text.splitlines()) == len(load_table())
    (record,) = json.loads(run("--json", "galena")[1])
    assert (record["danger"], record["synonyms"]["de"]) == ("lead", ["Galenit", "Bleiglanz"])


def test_a_table_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(
        "\ufeffname,species,group,de\namazonite,microcline,feldspar group,Amazonit; Amazonenstein\n", "utf-8"
    )
    assert lineage("amazonite", load_table(path)) == ("microcline", "feldspar group")
    assert "Amazonenstein" in run("--table", str(path), "amazonite")[1]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name,group\nagate,\n", "no column species"),
        ("name,species\nagate,quartz\nagate,quartz\n", "line 3: names 'agate' twice"),
        ("name,species\n,quartz\n", "line 2: has no name"),
        ("", "no column name or species"),
    ],
)
def test_a_bad_table_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=problem):
        load_table(path)
    assert run("--table", str(tmp_path / "missing.csv"))[1].startswith("Error: cannot read the table of minerals")


@pytest.mark.parametrize(
    ("name", "members"),
    [
        ("tourmaline", ["elbaite", "schorl"]),
        ("Elements", ["copper", "gold", "sulfur"]),
        ("garnet supergroup", ["almandine", "andradite", "demantoid"]),
    ],
)
def test_a_group_or_class_shows_its_members(name: str, members: list[str]) -> None:
    code, text = run(name)
    assert code == 0
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == members
