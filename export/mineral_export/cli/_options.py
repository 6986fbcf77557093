"""The options that the commands which write a model have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mineral_batch.contract import InputSpec
    from mineral_batch.images import Pixels
    from mineral_export.gate import Exported
    from mineral_export.quantise import Quantised

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


def calibration_options(command: Command) -> Command:
    """`--calibrate`, `--calibration-count` and `--quiet`: for the commands that quantise."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No progress."),
        click.option(
            "--calibration-count",
            default=256,
            show_default=True,
            type=click.IntRange(1),
            help="Of them, spread evenly over the folder.",
        ),
        click.option("--calibrate", type=FILE, required=True, help="Folder of photographs like those to be predicted."),
    ):
        command = option(command)
    return command


def calibration_pictures(folder: Path, spec: InputSpec, count: int) -> Pixels:
    """The photographs to calibrate with, (N, H, W, 3) uint8; says where there are fewer than asked for."""
    from mineral_export.verify import spread

    pixels = spread([folder], spec, count)
    if len(pixels) < count:
        click.echo(f"Calibration with {len(pixels)} photographs, not {count}: {folder} has no more that can be read")
    return pixels


class Phases:
    """One progress bar after another, one for each phase; a `Progress` of `verify` and of `tensorrt_build`."""

    def __init__(self, *, quiet: bool, unit: str = " pictures") -> None:
        from tqdm import tqdm

        self._bar = tqdm(disable=quiet or None, leave=False, unit=unit)
        self._phase = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def __call__(self, phase: str, step: int, steps: int) -> None:
        """Show the step; a phase's first begins its bar anew."""
        if step == 0 or phase != self._phase:
            self._bar.reset(steps or None)
        self._phase = phase
        self._bar.set_description(phase, refresh=False)
        self._bar.n = step
        self._bar.refresh()


def report(exported: Exported, source: str | Path) -> None:
    """What was written, and how far its answers lie from the source's."""
    click.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB")
    click.echo(f"Compared with {source}: {exported.parity}")


def report_layers(result: Quantised, precision: str) -> None:
    """How many layers are in 8 bits, and which were taken back."""
    click.echo(f"{result.rounded} of {result.layers} layers in {precision}, what is not quantised in {result.rest}")
    kept = [f"{name} ({result.errors[name]:.1%})" for name in result.kept]
    if kept:
        click.echo(f"Left in {result.rest} for the budget, with their own error in {precision}: {', '.join(kept)}")
