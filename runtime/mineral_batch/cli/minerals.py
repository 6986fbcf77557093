"""`mineral-batch minerals`: what is known about the minerals."""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from mineral_batch.cli.paths import FETCHED
from mineral_batch.errors import DataError
from mineral_batch.minerals.names import canonical
from mineral_batch.minerals.sources import sources_of
from mineral_batch.minerals.table import LANGUAGES, Mineral, Table, load_table


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--table",
    type=FETCHED,
    metavar="CSV",
    help="Your own table of minerals (name,species,...). [default: the built-in table]",
)
@click.option("--sources", is_flag=True, help="Also print where each fact comes from.")
@click.option("--json", "as_json", is_flag=True, help="Print every fact as JSON, with its sources.")
def minerals(names: tuple[str, ...], table: Path | None, sources: bool, as_json: bool) -> None:
    """Show formula, group, class, names and hazards of minerals.

    NAMES are minerals in English, German, French, Spanish or Italian, or groups and classes ("tourmaline", "oxides"),
    which stand for their members. Without NAMES, there is a line for each mineral in the table.
    """
    if sources and table is not None:
        raise click.UsageError("--sources are those of the built-in table: leave --table out")
    known = load_table(table)
    named = {one.name: one for name in names for one in _find(name, known)}
    found = list((named if names else known).values())
    if as_json:
        records = [asdict(_plain(one)) | ({} if table else {"sources": _sources(one)}) for one in found]
        click.echo(json.dumps(records, indent=2, ensure_ascii=False))
    elif names or sources:
        click.echo("\n\n".join(describe(one) + ("\n" + _source_lines(one) if sources else "") for one in found))
    else:
        click.echo("\n".join(_line(one) for one in found))


def _plain(mineral: Mineral) -> Mineral:
    """With synonyms as a dict, which `asdict` can copy."""
    values = {name: getattr(mineral, name) for name in mineral.__dataclass_fields__}
    return Mineral(**(values | {"synonyms": dict(mineral.synonyms)}))


def _sources(mineral: Mineral) -> dict[str, dict[str, str | list[str]]]:
    """By fact, of those that are known: the work that it follows, and the lists that say the same."""
    facts = mineral.facts
    found = {fact: sources_of(mineral.name, fact) for fact, text in facts.items() if text}
    return {fact: {"given": given, "equal": list(equal)} for fact, (given, equal) in found.items()}


def _source_lines(mineral: Mineral) -> str:
    lines = ["  sources"]
    for fact in (fact for fact, text in mineral.facts.items() if text):
        given, equal = sources_of(mineral.name, fact)
        text = f"{fact}: {given}" + "".join(f"; the same in: {one}" for one in equal)
        lines.append(textwrap.fill(text, 100, initial_indent="    ", subsequent_indent="      "))
    return "\n".join(lines)


def _find(name: str, known: Table) -> list[Mineral]:
    """The mineral of a name, or all of a species, group or class that begins with it."""
    if found := canonical(name, known):
        return [known[found]]
    start = name.strip().casefold()
    if members := [one for one in known.values() if start and any(map(_starts(start), one.lineage))]:
        return members
    close = difflib.get_close_matches(start, known, n=3) or _close_in_other_languages(start, known)
    meant = f"did you mean {' or '.join(close)}?" if close else "mineral-batch minerals lists them"
    raise DataError(f"no mineral named {name!r} in the table: {meant}")


def _close_in_other_languages(start: str, known: Table) -> list[str]:
    """`Zinnober (cinnabar)`: the nearest other name of up to three minerals."""
    spelled = {
        name.casefold(): (name, one.name) for one in known.values() for names in one.synonyms.values() for name in names
    }
    nearest = [spelled[found] for found in difflib.get_close_matches(start, spelled, n=9)]
    first = {mineral: name for name, mineral in reversed(nearest)}
    return [f"{first[mineral]} ({mineral})" for mineral in dict.fromkeys(mineral for _, mineral in nearest)][:3]


def _starts(start: str) -> Callable[[str], bool]:
    return lambda name: name.casefold().startswith(start)


def _line(mineral: Mineral) -> str:
    return f"{mineral.name:<14} {mineral.formula:<41} {mineral.mineral_class:<38} {mineral.danger}".rstrip()


def describe(mineral: Mineral) -> str:
    """The facts of a mineral, a line each; facts that are not known are left out."""
    dana = f"{mineral.dana}, {mineral.dana_class}" if mineral.dana else ""
    facts = {
        "formula": mineral.formula,
        "status": mineral.ima_status,
        "symbol": mineral.ima_symbol,
        "group": mineral.group,
        "Strunz": ", ".join(part for part in (mineral.strunz, mineral.mineral_class) if part),
        "Dana": dana,
        **{language: ", ".join(mineral.synonyms[language]) for language in LANGUAGES},
        "hazard": mineral.hazard,
        "care": mineral.care,
    }
    lines = [
        textwrap.fill(text, 100, initial_indent=f"  {name:<8} ", subsequent_indent=" " * 11)
        for name, text in facts.items()
        if text
    ]
    return "\n".join([mineral.name, *lines])
