"""`mineral-train familiarity`: let a model say when an image looks like nothing that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import INPUT, LOCAL
from mineral_train.data.manifest import read_manifest
from mineral_train.model.fetched import fetch_model, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mineral_batch.types import Failure, Image


@click.command()
@click.argument("model", type=INPUT)
@click.argument("manifest", type=INPUT)
@click.option(
    "-o",
    "--output",
    type=LOCAL,
    metavar="FILE",
    help="ONNX file to write. [default: in place of MODEL]",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")
def familiarity(model: Path | str, manifest: Path | str, output: Path | None, quiet: bool) -> None:
    """Add a score of familiarity to MODEL (an ONNX file), fitted to its training images in MANIFEST.

    Afterwards `mineral-batch predict --columns familiarity` gives each image the share of the training images that look
    stranger to the model: 0.03 means that the image is stranger than 97% of them. The score says nothing about
    minerals: a photograph of a mineral that is not among the labels is familiar, and has low probabilities.
    """
    from tqdm import tqdm

    from mineral_batch.model.onnx_file import read_contract, require_model_or_nothing
    from mineral_train.training.familiarize import familiarize_onnx

    def progress(decoded: Iterable[Image | Failure], total: int) -> Iterable[Image | Failure]:
        bar: Iterable[Image | Failure] = tqdm(
            decoded, total=total, desc="features", unit=" images", disable=quiet or None
        )
        return bar

    named, model = model, fetch_model(model)
    if model != named and output is None:
        raise click.UsageError(f"nothing is written to {shown(named)}: say with -o where the model goes")
    if output is not None:
        require_model_or_nothing(output)
    table = read_manifest(manifest, read_contract(model).labels)
    train, held = ([row.path for row in table.select(split)] for split in ("train", "val"))
    words = f"split train of {Path(manifest).name}"
    contract = familiarize_onnx(model, train, held, words, target=output, progress=progress)
    assert contract.familiarity is not None
    click.echo(f"{output or model} has a familiarity, fitted to {contract.familiarity.images} images ({words})")
