"""Options that say which tables are written; `predict` and `merge` share them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from mineral_batch.cli.paths import LOCAL_TEXT
from mineral_batch.minerals.table import LEVELS
from mineral_batch.results.prevalence import ESTIMATE
from mineral_batch.results.schema import COLUMNS, FORMATS, PER_IMAGE
from mineral_batch.results.write import Tables


def _columns(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    del ctx, parameter
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise click.BadParameter(f"unknown columns: {', '.join(unknown)}; choose from {', '.join(COLUMNS)}")
    return tuple(name for name in COLUMNS if name in names)


_OPTIONS = (
    click.option(
        "--format", "formats", multiple=True, type=click.Choice([*FORMATS]), help="Write this table too. Repeatable."
    ),
    click.option(
        "--layout",
        default="table",
        show_default=True,
        type=click.Choice(["table", PER_IMAGE]),
        help=f"{PER_IMAGE}: also write a CSV for each image, in OUTPUT/{PER_IMAGE}, in the same folders as the images.",
    ),
    click.option(
        "--columns",
        default="",
        metavar="LIST",
        callback=_columns,
        help=f"Add columns, separated by commas: {', '.join(COLUMNS)}.",
    ),
    click.option(
        "--prevalence",
        type=LOCAL_TEXT,
        metavar=f"FILE|{ESTIMATE}",
        help="Correct the probabilities for how frequent the minerals are in your images: from a CSV "
        f"(mineral,prevalence), or {ESTIMATE}: estimated from the images.",
    ),
    click.option(
        "--level",
        type=click.Choice(LEVELS),
        help="Add the column `answer`: if no mineral is certain, the species, group or class that is, up to this "
        "level.",
    ),
    click.option(
        "--specimen",
        type=LOCAL_TEXT,
        metavar="RULE",
        help="Also write specimens.csv, with one answer for all images of a specimen. RULE says which belong together: "
        "folder; catalog (the number in the file name: X-90175_1.jpg); regex=PATTERN; or a CSV (path,specimen).",
    ),
    click.option(
        "--minerals", type=LOCAL_TEXT, metavar="CSV", help="Your own table of minerals (name,species,...), for --level."
    ),
    click.option("--round", "decimals", type=click.IntRange(0, 7), help="Round probabilities to this many decimals."),
)


#: The names of their parameters, for a section of the help.
TABLE_OPTIONS = ("formats", "layout", "columns", "prevalence", "level", "specimen", "minerals", "decimals")


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets their values as one argument `tables`, a `Tables`."""

    @wraps(command)
    def with_tables(**values: Any) -> Any:
        chosen = {name: values.pop(name) for name in TABLE_OPTIONS}
        return command(tables=Tables(per_image=chosen.pop("layout") == PER_IMAGE, **chosen), **values)

    decorated: Callable[..., Any] = with_tables
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
