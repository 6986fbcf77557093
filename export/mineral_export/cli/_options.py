"""The options that the commands which write a model have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_export.gate import Exported
    from mineral_export.verify import Budget

    Command = Callable[..., Any]

FILE = click.Path(path_type=Path)


def pictures_options(command: Command) -> Command:
    """`--photos`, `--labels`, `--split`, `--count`: what is compared on."""
    for option in (
        click.option("--count", type=click.IntRange(1), help="Compare on so many. [default: all; 8 synthetic ones]"),
        click.option("--split", help="Compare on the rows of LABELS that have this in their column `split`."),
        click.option("--labels", type=FILE, help="CSV path,labels[,split]: compare mAP on the photographs it names."),
        click.option("--photos", type=FILE, help="Compare on these photographs. [default: synthetic ones]"),
    ):
        command = option(command)
    return command


def gate_options(command: Command) -> Command:
    """`pictures_options`, the budget, and what to do beyond it."""
    for option in (
        click.option("--force", is_flag=True, help="Write the model even if it is beyond the budget."),
        click.option("--points", type=float, help="Points of mAP that may be lost. [default: the precision's budget]"),
    ):
        command = option(command)
    return pictures_options(command)


def budget_of(precision: str, points: float | None) -> Budget:
    """The precision's budget, with another loss of mAP if one is given."""
    from dataclasses import replace

    from mineral_export.verify import BUDGETS

    return BUDGETS[precision] if points is None else replace(BUDGETS[precision], points=points)


def report(exported: Exported, source: str | Path) -> None:
    """What was written, and how far its answers lie from the source's."""
    click.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB")
    click.echo(f"Compared with {source}: {exported.parity}")
