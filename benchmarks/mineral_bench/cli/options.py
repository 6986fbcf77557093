"""Options that several commands share."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = click.Path(path_type=Path)


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--json` and `--markdown`, as parameters `json_file` and `markdown_file`."""
    option = partial(click.option, type=click.Path(path_type=Path, dir_okay=False))
    command = option("--markdown", "markdown_file", help="Also write the tables to this file.")(command)
    return option("--json", "json_file", help="Write every figure to this file.")(command)


def limit(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the option `--seconds`."""
    text = "Measure for at most this long; less if all figures are stable."
    return click.option("--seconds", default=seconds, show_default=True, type=click.FloatRange(0), help=text)
