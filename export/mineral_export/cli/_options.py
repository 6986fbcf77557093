"""Options and output that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from mineral_batch.cli.paths import LOCAL, FetchedBy
from mineral_train.model.fetched import fetch_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_export.precision.calibration import CalibrationImages
    from mineral_export.precision.quantize import Quantized
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.convert import ExportedFile
    from mineral_export.verify.samples import Samples

    Command = Callable[..., Any]

#: A checkpoint's folder or a file, or its URL.
CHECKPOINT = FetchedBy(fetch_model)


@dataclass(frozen=True)
class SampleOptions:
    """The images that two forms of a model are compared on."""

    photos: Path | None
    labels: Path | None
    split: str | None
    count: int | None

    def load(self, contract: ModelContract, count: int | None = None) -> Samples:
        """Load them; `count` if the user gave no number."""
        from mineral_export.verify.samples import load_samples

        return load_samples(contract, self.photos, self.labels, self.split, self.count or count)

    @property
    def are_named(self) -> bool:
        """Whether the user named photographs or labels."""
        return self.photos is not None or self.labels is not None


@dataclass(frozen=True)
class BudgetOptions:
    """What decides whether a file is written."""

    points: float | None
    force: bool

    def budget(self, precision: str) -> Budget:
        """Return the precision's budget, with the loss of mAP that the user allows."""
        from mineral_export.verify.budget import budget_for

        return budget_for(precision, self.points)


@dataclass(frozen=True)
class CalibrationOptions:
    """The photographs that a quantizer looks at."""

    calibrate: Path
    calibration_count: int

    def load(self, spec: InputSpec, *, hold_out: bool) -> CalibrationImages:
        """Decode them, some held out to compare on; prints how many."""
        from mineral_export.precision.calibration import load_calibration

        images = load_calibration(self.calibrate, spec, self.calibration_count, hold_out=hold_out)
        held_out = f"; {len(images.held_out)} others are held out to compare on" if hold_out else ""
        click.echo(f"Calibrating with {len(images.pixels)} photographs of {self.calibrate}{held_out}")
        return images


def _grouped(name: str, kind: type, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds options and passes their values to the command as one argument."""

    def decorate(command: Command) -> Command:
        @wraps(command)
        def with_group(**values: Any) -> Any:
            group = kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            return command(**{name: group}, **values)

        decorated: Command = with_group
        for option in options:
            decorated = option(decorated)
        return decorated

    return decorate


def _sample_options(default: str) -> Callable[[Command], Command]:
    return _grouped(
        "samples",
        SampleOptions,
        click.option("--count", type=click.IntRange(1), help="Compare on at most this many images. [default: all]"),
        click.option(
            "--split",
            metavar="NAME",
            help="Use only the rows of --labels with this value in the column `split`. [default: all]",
        ),
        click.option(
            "--labels",
            type=LOCAL,
            metavar="CSV",
            help="Labels (path,labels[,split]): compare the mAP on these images.",
        ),
        click.option("--photos", type=LOCAL, help=f"Compare on these photographs. [default: {default}]"),
    )


#: `--photos`, `--labels`, `--split`, `--count`, as `samples`.
sample_options = _sample_options("8 synthetic images")

#: The same for quantizers, which hold photographs out.
held_out_sample_options = _sample_options("some of --calibrate, held out of it")

#: `--points` and `--force`, as `limits`.
budget_options = _grouped(
    "limits",
    BudgetOptions,
    click.option("--force", is_flag=True, help="Write the file even if it exceeds the budget."),
    click.option("--points", type=float, help="Points of mAP that may be lost. [default: the precision's budget]"),
)

#: `--calibrate` and `--calibration-count`, as `calibration`.
calibration_options = _grouped(
    "calibration",
    CalibrationOptions,
    click.option(
        "--calibration-count",
        default=256,
        show_default=True,
        type=click.IntRange(1),
        help="Calibrate with at most this many photographs, spread evenly over the folder; at least 16.",
    ),
    click.option(
        "--calibrate",
        type=LOCAL,
        metavar="DIR",
        required=True,
        help="Folder of photographs like those that the model will see.",
    ),
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")


class ProgressPhases:
    """One progress bar after another, one for each phase; a `Progress` of exports and of TensorRT builds."""

    def __init__(self, *, quiet: bool, unit: str = " images") -> None:
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
        """Show the step; the first one of a phase starts a new bar."""
        if step == 0 or phase != self._phase:
            self._bar.reset(steps or None)
        self._phase = phase
        self._bar.set_description(phase, refresh=False)
        self._bar.n = step
        self._bar.refresh()


def echo_exported(exported: ExportedFile, source: str | Path) -> None:
    """Print what was written, and how far its output lies from the source's."""
    click.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB")
    click.echo(f"Compared with {source}: {exported.parity}")


def echo_layers(result: Quantized, precision: str) -> None:
    """Print how many layers are in 8 bits, and which were taken back."""
    rest = f", the rest in {result.rest}" if result.rounded < result.layers else ""
    click.echo(f"{result.rounded} of {result.layers} layers in {precision}{rest}")
    kept = [f"{name} ({result.errors[name]:.1%})" for name in result.kept]
    if kept:
        click.echo(f"Left in {result.rest} to meet the budget, with their error in {precision}: {', '.join(kept)}")
