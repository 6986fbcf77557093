"""`mineral-export triton`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mineral_export.cli._options import FILE

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("-m", "--model", type=FILE, required=True, help="ONNX file, or engine from mineral-export trt.")
@click.option("--name", default="minerals", show_default=True, help="Of the model in the server.")
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(1), help="Pictures at once.")
@click.option(
    "--delay", default=1000, show_default=True, type=click.IntRange(0), help="Microseconds to wait for a fuller batch."
)
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1), help="Copies on each device.")
@click.option("--kind", type=click.Choice(["gpu", "cpu"]), default="gpu", show_default=True, help="Of device.")
def triton(folder: Path, model: Path, name: str, **serving: Any) -> None:
    """Add MODEL to the Triton model repository DIR (made if it does not exist).

    Clients send uint8 pictures at the model's input size and get probabilities; labels and thresholds are in the
    configuration. Serve with: tritonserver --model-repository DIR
    """
    from mineral_export.triton import Serving, write_repository

    written = write_repository(model, folder, name, Serving(**serving))
    click.echo(f"{written}: serve with tritonserver --model-repository {folder}")
