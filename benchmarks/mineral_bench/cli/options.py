"""What several commands ask for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

PATH = click.Path(path_type=Path)


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--json` and `--markdown`, as parameters `json_file` and `markdown_file`."""
    option = partial(click.option, type=click.Path(path_type=Path, dir_okay=False))
    command = option("--markdown", "markdown_file", help="Write the tables there, too.")(command)
    return option("--json", "json_file", help="Write every figure there.")(command)


def limit(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option `--seconds`."""
    text = "Measure at most so long; earlier if all figures are stable."
    return click.option("--seconds", default=seconds, show_default=True, type=click.FloatRange(0), help=text)
