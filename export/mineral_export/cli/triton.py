"""`mineral-export triton`: add a model to a repository of NVIDIA Triton Inference Server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mineral_batch.cli.paths import FETCHED, LOCAL

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("folder", metavar="DIR", type=LOCAL)
@click.option("-m", "--model", type=FETCHED, required=True, help="ONNX file, or TensorRT engine of mineral-export trt.")
@click.option("--name", default="minerals", show_default=True, metavar="NAME", help="Name of the model in the server.")
@click.option("--max-batch", default=64, show_default=True, type=click.IntRange(1), help="Largest batch size.")
@click.option(
    "--delay",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="Time that a request waits for a fuller batch, microseconds.",
)
@click.option(
    "--instances", default=1, show_default=True, type=click.IntRange(1), help="Copies of the model on each device."
)
@click.option("--kind", type=click.Choice(["gpu", "cpu"]), default="gpu", show_default=True, help="Kind of device.")
def triton(folder: Path, model: Path, name: str, **serving: Any) -> None:
    """Add MODEL to the Triton model repository DIR (created if it does not exist).

    Clients send uint8 images of the model's input size and get probabilities; labels and thresholds are in the
    configuration. Serve it with: tritonserver --model-repository DIR
    """
    from mineral_export.triton import ServerConfig, write_repository

    written = write_repository(model, folder, name, ServerConfig(**serving))
    click.echo(f"{written}: serve it with tritonserver --model-repository {folder}")
