"""`mineral-export onnx`: a checkpoint folder in, one ONNX file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL, require_output
from mineral_batch.explain.maps import GRAD_CAM, METHODS
from mineral_export.cli._options import CHECKPOINT, sample_options
from mineral_export.onnx.defaults import NEWEST_OPSET, OLDEST_OPSET, OPSET, TOP
from mineral_export.verify.budget import TOLERANCE

if TYPE_CHECKING:
    from mineral_export.cli._options import SampleOptions


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@click.option(
    "-o",
    "--output",
    type=LOCAL,
    metavar="FILE",
    help="ONNX file to write. [default: CHECKPOINT/model.onnx]",
)
@click.option("--name", metavar="TEXT", help="Name of the model. [default: the checkpoint's]")
@click.option(
    "--license",
    "license_text",
    metavar="TEXT",
    help="License of the model, e.g. Apache-2.0. [default: the checkpoint's]",
)
@sample_options
@click.option(
    "--tolerance", default=TOLERANCE, show_default=True, help="Largest difference of a probability that is accepted."
)
@click.option("--force", is_flag=True, help="Write the file even if its output differs.")
@click.option(
    "--explain",
    is_flag=False,
    flag_value=GRAD_CAM,
    type=click.Choice(METHODS),
    help=f"Add maps of where the model looks, for mineral-batch explain. Without a value: {GRAD_CAM}.",
)
@click.option(
    "--top",
    default=TOP,
    show_default=True,
    type=click.IntRange(1),
    help="With --explain: how many maps the file gives for an image.",
)
@click.option(
    "--opset",
    default=OPSET,
    show_default=True,
    type=click.IntRange(OLDEST_OPSET, NEWEST_OPSET),
    help="ONNX operator set; 23 has attention as one operator, for onnx-cuda in FP16 and for TensorRT.",
)
def onnx(
    checkpoint: Path,
    output: Path | None,
    name: str | None,
    license_text: str | None,
    samples: SampleOptions,
    tolerance: float,
    force: bool,
    explain: str | None,
    top: int,
    opset: int,
) -> None:
    """Export CHECKPOINT (a folder from mineral-train fit) to one self-describing ONNX file.

    The file takes uint8 images and gives probabilities; normalization, labels, thresholds and input size are inside. It
    is compared with the checkpoint on 8 images before it is written, and refused if the probabilities differ. --count
    and --labels compare on more.
    """
    from dataclasses import replace

    from mineral_batch.model.calibration import calibrate_command
    from mineral_export.onnx.export import export_onnx
    from mineral_export.verify.samples import SYNTHETIC_COUNT
    from mineral_train.training.checkpoint import load_checkpoint

    model, contract = load_checkpoint(checkpoint)
    contract = replace(contract, name=name or contract.name, license=license_text or contract.license)
    target = require_output(checkpoint, output, checkpoint / "model.onnx", "CHECKPOINT")
    exported = export_onnx(
        model,
        contract,
        target,
        opset=opset,
        samples=samples.load(contract, None if samples.labels else SYNTHETIC_COUNT),
        tolerance=tolerance,
        force=force,
        explain=explain,
        top=top,
    )
    click.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB, {len(contract.labels)} labels, opset {opset}")
    click.echo(f"Same output as the checkpoint: {exported.parity}")
    if not contract.is_calibrated:
        click.echo(f"The checkpoint is not calibrated; calibrate the file: {calibrate_command(target)}")
    if explain:
        click.echo(f"Same maps as the checkpoint ({explain}); to see them: mineral-batch explain -m {target}")
