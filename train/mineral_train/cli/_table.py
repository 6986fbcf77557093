"""The options that say how a CSV of photographs and labels is read, shared by `data` and `adapt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from mineral_batch.cli.paths import LOCAL
from mineral_train.data.labels import SEPARATOR

_OPTIONS = (
    click.option("--path-column", default="path", show_default=True, metavar="NAME", help="Column of paths in a CSV."),
    click.option(
        "--labels-column", default="labels", show_default=True, metavar="NAME", help="Column of labels in a CSV."
    ),
    click.option(
        "--separator",
        default=SEPARATOR,
        show_default=True,
        metavar="TEXT",
        help="What separates two labels in a cell of a CSV.",
    ),
    click.option(
        "--root", type=LOCAL, metavar="DIR", help="Folder where a CSV's relative paths start. [default: the CSV's]"
    ),
)


def table_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `path_column`, `labels_column`, `separator` and `root` to a command; `--help` lists them in this order."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
