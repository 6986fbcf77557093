"""Options that say which tables are written; `predict` and `merge` share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mineral_batch.minerals.table import LEVELS
from mineral_batch.results.prevalence import ESTIMATE
from mineral_batch.results.schema import COLUMNS, FORMATS, PER_IMAGE


def _columns(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    del ctx, parameter
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise click.BadParameter(f"unknown columns: {', '.join(unknown)}; choose from {', '.join(COLUMNS)}")
    return tuple(name for name in COLUMNS if name in names)


_OPTIONS = (
    click.option(
        "--format", "formats", multiple=True, type=click.Choice([*FORMATS]), help="Table besides the CSV; repeatable."
    ),
    click.option(
        "--layout",
        default="table",
        show_default=True,
        type=click.Choice(["table", PER_IMAGE]),
        help=f"{PER_IMAGE}: also write a CSV per image, in a copy of the tree below OUTPUT/{PER_IMAGE}.",
    ),
    click.option(
        "--columns", default="", callback=_columns, help=f"Extra columns, comma-separated: {', '.join(COLUMNS)}."
    ),
    click.option(
        "--prevalence",
        metavar=f"FILE|{ESTIMATE}",
        help="Correct probabilities for the prevalences here: of a CSV (mineral,prevalence), or estimated from the "
        "images.",
    ),
    click.option(
        "--level",
        type=click.Choice(LEVELS),
        help="Add the column answer: where no mineral is sure, the species, group or class that is, up to this level.",
    ),
    click.option(
        "--specimen",
        metavar="RULE",
        help="Also write specimens.csv, an answer per specimen. RULE: folder; catalog (numbers in names: X-90175_1); "
        "regex=PATTERN; or a CSV (path,specimen).",
    ),
    click.option("--minerals", metavar="CSV", help="Your own table of minerals (name,species,...), for --level."),
    click.option("--round", "decimals", type=click.IntRange(0, 7), help="Round probabilities to this many decimals."),
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; `decimals` is --round, the others have the names of their options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
