"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mineral_batch.cli.paths import LOCAL, LOCAL_TEXT
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.minerals.table import LEVELS

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

#: Help of `--specimen` where answers are compared with labels.
JUDGED = "Judge specimens instead of images. RULE as for predict: folder, catalog, regex=PATTERN, or a CSV."
#: Help of `--level` where answers are shown.
SHOWN = "If no mineral is certain, show the species, group or class that is, up to this level. [default: as in the run]"

photos_option = click.option(
    "--photos", type=LOCAL, metavar="DIR", help="Folder where relative paths start. [default: here or near RESULTS]"
)
max_pixels_option = click.option(
    "--max-pixels",
    default=MAX_PIXELS,
    show_default=True,
    type=click.IntRange(1),
    help="Refuse to decode images with more pixels than this.",
)


def labels_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that compares answers with labels the options `--split` and `--ignore-unknown`."""
    split = click.option(
        "--split",
        metavar="NAME",
        help="Use only the rows of LABELS with this value in the column `split`. [default: all]",
    )
    ignore = click.option(
        "--ignore-unknown",
        is_flag=True,
        help="Continue even if an unknown label looks like a misspelling of a known one.",
    )
    return split(ignore(command))


def specimen_option(text: str) -> Decorator:
    """Give a command the option `--specimen` with this help."""
    return click.option("--specimen", type=LOCAL_TEXT, metavar="RULE", help=text)


def level_options(text: str) -> Decorator:
    """Give a command the options `--level`, with this help, and `--minerals`."""
    level = click.option("--level", type=click.Choice(LEVELS), help=text)
    minerals = click.option(
        "--minerals", type=LOCAL, metavar="CSV", help="Your own table of minerals (name,species,...)."
    )
    return lambda command: level(minerals(command))
