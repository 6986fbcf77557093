"""The options that the commands which write a model have in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Pixels
    from mineral_export.precision.int8 import Quantised
    from mineral_export.verify.gate import Exported
    from mineral_export.verify.parity import Budget, Samples

    Command = Callable[..., Any]

FILE = click.Path(path_type=Path)


@dataclass(frozen=True)
class Pictures:
    """What two forms of a model are compared on."""

    photos: Path | None
    labels: Path | None
    split: str | None
    count: int | None

    def samples(self, contract: ModelContract, count: int | None = None) -> Samples:
        """Drawn anew; `count` where the user names no number."""
        from mineral_export.verify.parity import samples

        return samples(contract, self.photos, self.labels, self.split, self.count or count)


@dataclass(frozen=True)
class Gate:
    """What decides whether a model is written."""

    points: float | None
    force: bool

    def budget(self, precision: str) -> Budget:
        """The precision's, with the loss of mAP that the user allows."""
        from mineral_export.verify.parity import budget_of

        return budget_of(precision, self.points)


@dataclass(frozen=True)
class Calibration:
    """The photographs that a quantiser looks at."""

    calibrate: Path
    calibration_count: int

    def pixels(self, spec: InputSpec) -> Pixels:
        """(N, H, W, 3) uint8; says where there are fewer than asked for."""
        from mineral_export.verify.parity import spread

        pixels = spread([self.calibrate], spec, self.calibration_count)
        if len(pixels) < self.calibration_count:
            click.echo(
                f"Calibration with {len(pixels)} photographs, not {self.calibration_count}: {self.calibrate} has no "
                f"more that can be read"
            )
        return pixels


def _gathered(name: str, kind: type, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """A decorator that adds options and hands their values to the command as one argument."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_one(**given: Any) -> Any:
            values = kind(**{field.name: given.pop(field.name) for field in fields(kind)})
            return command(**{name: values}, **given)

        done: Command = with_one
        for option in options:
            done = option(done)
        return done

    return decorate


#: `--photos`, `--labels`, `--split`, `--count`, as `pictures`.
pictures_options = _gathered(
    "pictures",
    Pictures,
    click.option("--count", type=click.IntRange(1), help="Compare on so many. [default: all; 8 synthetic ones]"),
    click.option("--split", help="Compare on the rows of LABELS that have this in their column `split`."),
    click.option("--labels", type=FILE, help="CSV path,labels[,split]: compare mAP on the photographs it names."),
    click.option("--photos", type=FILE, help="Compare on these photographs. [default: synthetic ones]"),
)

#: `--points` and `--force`, as `gate`.
gate_options = _gathered(
    "gate",
    Gate,
    click.option("--force", is_flag=True, help="Write the model even if it is beyond the budget."),
    click.option("--points", type=float, help="Points of mAP that may be lost. [default: the precision's budget]"),
)

#: `--calibrate` and `--calibration-count`, as `calibration`.
calibration_options = _gathered(
    "calibration",
    Calibration,
    click.option(
        "--calibration-count",
        default=256,
        show_default=True,
        type=click.IntRange(1),
        help="Of them, spread evenly over the folder.",
    ),
    click.option("--calibrate", type=FILE, required=True, help="Folder of photographs like those to be predicted."),
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="No progress.")


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
