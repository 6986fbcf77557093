"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from mineral_batch.cli.paths import LOCAL, FetchedBy
from mineral_batch.results.seals import require_sealed
from mineral_train.model.fetched import fetch_model

#: A checkpoint's folder, a file or the name of a preset, or a URL.
SUBJECT = FetchedBy(fetch_model)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def output(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `--json` and `--markdown`, as parameters `json_file` and `markdown_file`."""
    option = partial(click.option, type=LOCAL, callback=_replaceable)
    command = option("--markdown", "markdown_file", help="Also write the tables to this file.")(command)
    return option("--json", "json_file", help="Write every figure to this file.")(command)


def _replaceable(context: click.Context, _option: click.Parameter, path: Path | None) -> Path | None:
    """Refuse before minutes of measuring what would be refused after them."""
    if path is not None and path.is_dir():
        raise click.BadParameter(f"{path} is a folder: name a file")
    if path is not None:
        require_sealed(path, str(context.info_name))
    return path


def limit(seconds: float) -> Decorator:
    """Add the option `--seconds`."""
    text = "Measure for at most this long; less if all figures are stable."
    return click.option("--seconds", default=seconds, show_default=True, type=click.FloatRange(0), help=text)


def engine(default: str = "auto") -> Decorator:
    """Add the option `--backend`."""
    text = "Engine, as for mineral-batch predict."
    return click.option("--backend", default=default, show_default=True, metavar="ENGINE", help=text)


def numbers(*names: str, default: tuple[int, ...], text: str) -> Decorator:
    """Add an option that may be repeated, with whole numbers above 0.

    Args:
        names: the option's, and the parameter's if it is another.
        default: what is measured without it.
        text: its help.
    """
    help_ = f"{text} Repeatable."
    return click.option(*names, multiple=True, default=default, show_default=True, type=click.IntRange(1), help=help_)
