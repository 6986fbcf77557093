"""What is known about each mineral: its formula, its place among the minerals, its names, its hazards.

The table of the package (minerals.csv beside this file) has the 36 labels and the species that their varieties belong
to. An empty cell means that the fact does not exist or was not checked. sources.csv says for each fact which work it
follows and which other lists were found to say the same (`sources.sources_of`). The label "sulfur" is spelled as in the
paper; the IMA writes sulphur.

Compared with other lists in 2026, all equal now: all formulas (by elements where the order differs); the symbols but
those of copper, gold and sulfur; the Strunz codes but that of gold; the Dana classes but those of gold and orpiment; 13
of the 28 groups; and a name of each mineral in German for 36 of the 39, in French and Spanish for 33, in Italian for
34. Not compared: the names of classes, further names in a language, and the notes on hazards and care.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from mineral_batch.errors import DataError, plain_reason

Level = Literal["variety", "species", "group", "class"]
#: From narrow to broad.
LEVELS: tuple[Level, ...] = get_args(Level)
LANGUAGES = ("en", "de", "fr", "es", "it")
_REQUIRED = ("name", "species")
_TEXTS = ("group", "class", "formula", "ima_symbol", "strunz", "dana", "dana_class", "danger", "hazard", "care")
_SEPARATOR = ";"


@dataclass(frozen=True)
class Mineral:
    """A row of the table; a fact that is not known is empty.

    Attributes:
        name: the label.
        species: the species that it is, or that it is a variety of.
        group: of the species.
        mineral_class: in Strunz's system.
        formula: ideal.
        ima_symbol: abbreviation, of a species.
        strunz: code in Strunz's system, 10th edition.
        dana: number of the class in Dana's system, 8th edition.
        dana_class: its name.
        synonyms: by language (`LANGUAGES`), the names in it.
        danger: a word for what can harm people who handle it whole: lead, mercury, arsenic, antimony, radioactive.
        hazard: what a person who handles it must know.
        care: what keeps the specimen whole.
    """

    name: str
    species: str
    group: str
    mineral_class: str
    formula: str
    ima_symbol: str
    strunz: str
    dana: str
    dana_class: str
    synonyms: Mapping[str, tuple[str, ...]]
    danger: str
    hazard: str
    care: str

    @property
    def is_variety(self) -> bool:
        """Whether the name is that of a variety, which is not a species of its own."""
        return self.name != self.species

    @property
    def ima_status(self) -> str:
        """Its status in words: on the list of the IMA, or not."""
        return f"variety of {self.species}, not a species of its own" if self.is_variety else "IMA-approved species"

    @property
    def facts(self) -> dict[str, str]:
        """Every fact by its column in the table, as text; the names of a language in one."""
        texts = {name: str(getattr(self, name)) for name in ("species", *_TEXTS) if name != "class"}
        texts["class"] = self.mineral_class
        return texts | {language: f"{_SEPARATOR} ".join(names) for language, names in self.synonyms.items()}

    @property
    def lineage(self) -> tuple[str, ...]:
        """The broader names: species, group and class, without those that are missing or the name itself."""
        return tuple(name for name in (self.species, self.group, self.mineral_class) if name and name != self.name)

    def at(self, level: Level) -> str:
        """The name at a level; where the mineral has no group, its species stands in."""
        names = {"variety": self.name, "species": self.species, "group": self.group, "class": self.mineral_class}
        return names[level] or self.species


Table = Mapping[str, Mineral]


def load_table(path: str | Path | None = None) -> Table:
    """Read a table of minerals by their names.

    Args:
        path: a CSV with the columns `name` and `species`, and any of the others; None for the package's own.

    Raises:
        DataError: if it cannot be read, lacks a column or names a mineral twice.
    """
    return _packaged() if path is None else _own(Path(path))


@cache
def _packaged() -> Table:
    text = (files(__package__) / "minerals.csv").read_text(encoding="utf-8")
    return _table(csv.DictReader(text.splitlines()), "the table of minerals")


def _own(path: Path) -> Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _table(csv.DictReader(file), str(path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table of minerals {path}: {plain_reason(error)}") from None


def _table(rows: csv.DictReader[str], source: str) -> Table:
    if missing := [name for name in _REQUIRED if name not in (rows.fieldnames or ())]:
        raise DataError(f"{source} has no column {' or '.join(missing)}; it needs {', '.join(_REQUIRED)}")
    minerals: dict[str, Mineral] = {}
    for row in rows:
        mineral = _mineral({name: (text or "").strip() for name, text in row.items() if isinstance(name, str)})
        if not mineral.name or mineral.name in minerals:
            problem = f"names {mineral.name!r} twice" if mineral.name else "has no name"
            raise DataError(f"{source}, line {rows.line_num}: {problem}")
        minerals[mineral.name] = mineral
    return MappingProxyType(minerals)


def _mineral(row: Mapping[str, str]) -> Mineral:
    texts = {("mineral_class" if name == "class" else name): row.get(name, "") for name in _TEXTS}
    synonyms = {language: _names(row.get(language, "")) for language in LANGUAGES}
    return Mineral(row["name"], row["species"] or row["name"], synonyms=MappingProxyType(synonyms), **texts)


def _names(cell: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in cell.split(_SEPARATOR) if name.strip())


def lineage(name: str, table: Table | None = None) -> tuple[str, ...]:
    """The broader names of a mineral, or of a species, group or class in the table; none of a name that it lacks."""
    table = load_table() if table is None else table
    if name in table:
        return table[name].lineage
    found = (mineral.lineage for mineral in table.values() if name in mineral.lineage)
    return next((broader[broader.index(name) + 1 :] for broader in found), ())


def level_of(name: str, table: Table | None = None) -> Level | None:
    """At which level a name stands, the narrowest one; None if the table does not have it."""
    table = load_table() if table is None else table
    if name in table:
        return "variety" if table[name].is_variety else "species"
    broader: tuple[Level, ...] = LEVELS[1:]
    return next((level for level in broader if any(one.at(level) == name for one in table.values())), None)


def name_at(label: str, level: Level, table: Table | None = None) -> str:
    """The name of a label at a level; the label itself where the table does not have it."""
    mineral = (load_table() if table is None else table).get(label)
    return mineral.at(level) if mineral else label


def names_at(labels: Iterable[str], level: Level, table: Table | None = None) -> dict[str, tuple[str, ...]]:
    """Every name at a level, with the labels that it covers, both in the order of the labels."""
    covered: dict[str, list[str]] = {}
    for label in labels:
        covered.setdefault(name_at(label, level, table), []).append(label)
    return {name: tuple(labels) for name, labels in covered.items()}
