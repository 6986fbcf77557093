"""`mineral-export onnx`: a checkpoint folder in, one ONNX file out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.explain.maps import GRAD_CAM, METHODS
from mineral_export import NEWEST_OPSET, OLDEST_OPSET, OPSET, TOLERANCE, TOP
from mineral_export.cli._options import pictures_options

if TYPE_CHECKING:
    from mineral_export.cli._options import Pictures


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: CHECKPOINT/model.onnx.")
@click.option("--name", help="What to call the model; default: the checkpoint's name for it.")
@click.option("--licence", help="Under which terms it is given away, e.g. Apache-2.0; default: the checkpoint's.")
@pictures_options
@click.option("--tolerance", default=TOLERANCE, show_default=True, help="Largest difference of a probability.")
@click.option("--force", is_flag=True, help="Write the model even if its answers differ.")
@click.option(
    "--explain",
    is_flag=False,
    flag_value=GRAD_CAM,
    type=click.Choice(METHODS),
    help=f"Give maps of where the model looks, too, for mineral-batch explain. Alone: {GRAD_CAM}.",
)
@click.option(
    "--top", default=TOP, show_default=True, type=click.IntRange(1), help="With --explain: maps of a picture."
)
@click.option(
    "--opset",
    default=OPSET,
    show_default=True,
    type=click.IntRange(OLDEST_OPSET, NEWEST_OPSET),
    help="ONNX operator set; 23 has attention as one operator, for onnx-cuda in FP16 and for engines.",
)
def onnx(
    checkpoint: Path,
    output: Path | None,
    name: str | None,
    licence: str | None,
    pictures: Pictures,
    tolerance: float,
    force: bool,
    explain: str | None,
    top: int,
    opset: int,
) -> None:
    """Export CHECKPOINT (a folder from mineral-train fit) to one self-describing ONNX file.

    The file takes uint8 pictures and gives probabilities; normalisation, labels, thresholds and input size are inside.
    It is compared with the checkpoint before it is written, and refused if their answers differ. One pass over 8
    pictures shows that; --count and --labels ask for more.
    """
    from dataclasses import replace

    from mineral_export.onnx.export import export_onnx
    from mineral_export.verify.parity import PICTURES
    from mineral_train.training.checkpoint import load_checkpoint

    model, contract = load_checkpoint(checkpoint)
    contract = replace(contract, name=name or contract.name, licence=licence or contract.licence)
    target = output or checkpoint / "model.onnx"
    exported = export_onnx(
        model,
        contract,
        target,
        opset=opset,
        pictures=pictures.samples(contract, None if pictures.labels else PICTURES),
        tolerance=tolerance,
        force=force,
        explain=explain,
        top=top,
    )
    click.echo(f"{exported.path}: {exported.size / 1e6:.1f} MB, {len(contract.labels)} labels, opset {opset}")
    click.echo(f"Same answers as the checkpoint: {exported.parity}")
    if explain:
        click.echo(f"Same maps as the checkpoint ({explain}); look at them with: mineral-batch explain -m {target}")
