"""What is known about the minerals: the table, names in five languages, broader names."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from importlib.resources import files
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.cli import main
from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS, canonical, other_names
from mineral_batch.minerals.sources import sources_of
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


@pytest.mark.parametrize("name", ["fool's gold", "Fool’s Gold", "fools_gold"])
def test_an_apostrophe_may_be_typographic_or_left_out(name: str) -> None:
    assert canonical(name, MINERALS) == "pyrite"


def test_the_command_finds_a_mineral_by_any_of_its_names() -> None:
    code, text = run("Zinnober", "CUARZO")
    assert code == 0
    assert "HgS" in text and "mercury" in text and "SiO2" in text  # noqa: PT018
    assert run("granate")[0] == 1
    code, text = run("quarx")
    assert (code, "did you mean quartz?" in text) == (1, True)
    code, text = run("zinober")
    assert (code, "did you mean Zinnober (cinnabar)?" in text) == (1, True)
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


CLASSES = {
    "1": "Elements",
    "2": "Sulfides and sulfosalts",
    "3": "Halides",
    "4": "Oxides",
    "5": "Carbonates",
    "7": "Sulfates, molybdates and tungstates",
    "8": "Phosphates, arsenates and vanadates",
    "9": "Silicates",
}
DANGERS = {"Pb": "lead", "Hg": "mercury", "As": "arsenic", "Sb": "antimony", "U": "radioactive"}


def composition(formula: str) -> Counter[str]:
    """How many atoms of each element an ideal formula has; what colors a variety, in brackets at the end, is not in."""
    total: Counter[str] = Counter()
    for part in re.sub(r" \(.*\)$", "", formula).split("·"):
        times, _, rest = re.match(r"((\d+)|n)?(.*)", part).group(1, 2, 3)
        levels: list[Counter[str]] = [Counter()]
        for token in re.findall(r"\(|\)[\d.]*|[A-Z][a-z]?[\d.]*", rest):
            if token == "(":
                levels.append(Counter())
            elif token[0] == ")":
                inner = levels.pop()
                levels[-1].update({one: count * float(token[1:] or 1) for one, count in inner.items()})
            else:
                element, count = re.match(r"([A-Z][a-z]?)(.*)", token).groups()
                levels[-1].update({element: float(count or 1)})
        (only,) = levels
        total.update({one: count * float(times if times and times != "n" else 1) for one, count in only.items()})
    return total


def test_a_composition_counts_every_atom() -> None:
    assert composition("Cu(UO2)2(PO4)2·12H2O") == {"Cu": 1, "U": 2, "O": 24, "P": 2, "H": 24}
    assert composition("Al2O3 (Fe, Ti)") == {"Al": 2, "O": 3}


@pytest.mark.parametrize("name", sorted(load_table()))
def test_the_class_follows_from_the_formula(name: str) -> None:
    mineral = load_table()[name]
    elements = set(composition(mineral.formula))
    has_anion = {
        "1": len(elements) == 1,
        "2": "S" in elements and "O" not in elements,
        "3": bool(elements & {"F", "Cl"}) and "O" not in elements,
        "4": "O" in elements and (not elements & {"C", "S", "P", "Si"} or elements <= {"Si", "O", "H"}),
        "5": "CO3" in mineral.formula,
        "7": any(anion in mineral.formula for anion in ("SO4", "MoO4", "WO4")),
        "8": "PO4" in mineral.formula,
        "9": {"Si", "O"} < elements and not elements <= {"Si", "O", "H"},
    }
    assert has_anion[mineral.strunz[0]]
    assert mineral.mineral_class == CLASSES[mineral.strunz[0]]


def test_the_charges_of_every_formula_are_balanced() -> None:
    """With the usual charges; iron makes up the difference, and must need 2 to 3 for that (disulfides: S of -1)."""
    charges = {
        "Na": 1, "Li": 1, "H": 1, "Cu": 2, "Pb": 2, "Hg": 2, "Zn": 2, "Mg": 2, "Ca": 2, "Mn": 2, "Be": 2, "Al": 3,
        "B": 3, "As": 3, "Sb": 3, "Si": 4, "C": 4, "Sn": 4, "P": 5, "U": 6, "Mo": 6, "O": -2, "F": -1, "Cl": -1,
    }  # fmt: skip
    for mineral in load_table().values():
        atoms = composition(mineral.formula)
        if len(atoms) == 1:
            continue
        sulfur = 6 if "SO4" in mineral.formula else -1 if mineral.formula == "FeS2" else -2
        rest = sum(count * (sulfur if one == "S" else charges[one]) for one, count in atoms.items() if one != "Fe")
        assert 2 <= -rest / atoms["Fe"] <= 3 if "Fe" in atoms else rest == 0, mineral.name


def test_what_a_formula_holds_is_warned_of() -> None:
    for mineral in load_table().values():
        elements = set(composition(mineral.formula))
        expected = {danger for element, danger in DANGERS.items() if element in elements}
        assert expected == ({mineral.danger} if mineral.danger else set()), mineral.name
        must_name = {
            "copper": "Cu" in elements and "C" in elements,
            "beryllium": "Be" in elements,
            "silica": mineral.formula == "SiO2",
            "hydrogen fluoride": mineral.formula == "CaF2",
            "sulfuric acid": mineral.formula == "FeS2",
            "sulfur dioxide": mineral.formula == "S",
            "uranium": "U" in elements,
            **{danger: danger == mineral.danger for danger in DANGERS.values() if danger != "radioactive"},
        }
        for word, is_needed in must_name.items():
            assert word in mineral.hazard or not is_needed, (mineral.name, word)


def test_varieties_stand_where_their_species_do_and_groups_know_their_members() -> None:
    table = load_table()
    for mineral in table.values():
        species = table[mineral.species]
        for fact in ("group", "mineral_class", "strunz", "dana", "dana_class"):
            assert getattr(mineral, fact) == getattr(species, fact), (mineral.name, fact)
        assert composition(mineral.formula) == composition(species.formula)
    symbols = [mineral.ima_symbol for mineral in table.values() if mineral.ima_symbol]
    assert len(symbols) == len(set(symbols)) == sum(not mineral.is_variety for mineral in table.values())
    for group in {mineral.group for mineral in table.values() if mineral.group}:
        members = [mineral.name for mineral in table.values() if mineral.group == group]
        assert names_at(table, "group")[group] == tuple(members)
        assert len({table[name].mineral_class for name in members}) == 1
    classes = {mineral.dana: mineral.dana_class for mineral in table.values()}
    assert all(mineral.dana_class == classes[mineral.dana] for mineral in table.values())


def test_every_fact_has_a_source_and_every_source_a_fact() -> None:
    table = load_table()
    for mineral in table.values():
        for fact, text in mineral.facts.items():
            assert sources_of(mineral.name, fact).given or not text, (mineral.name, fact)
    text = (files("mineral_batch.minerals") / "sources.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        assert row["kind"] in ("given", "equal")
        for name in row["names"].split(";"):
            assert name == "*" or table[name].facts[row["fact"]], f"{row['fact']} of {name} is not in the table"
    assert sources_of("schorl", "group").given.startswith("Henry"), "the work that names the mineral comes first"
    assert sources_of("gold", "strunz").equal == ()
    assert all(sources_of(name, "formula").equal for name, one in table.items() if not one.is_variety)


def test_the_command_prints_the_sources() -> None:
    code, text = run("--sources", "topaz")
    assert code == 0
    assert "formula: IMA-CNMNC List of Minerals" in text
    assert "the same in: RRUFF" in " ".join(text.split())
    (record,) = json.loads(run("--json", "topaz")[1])
    assert record["sources"]["ima_symbol"]["given"].startswith("Warr 2021")
    assert set(record["sources"]) >= {"formula", "strunz", "dana", "group"} - {"group"}
