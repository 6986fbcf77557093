"""`mineral-train synth`: images with labels, made from nothing."""

from __future__ import annotations

from pathlib import Path

import click

from mineral_batch.cli.paths import LOCAL
from mineral_batch.minerals import MINERALS
from mineral_train.synth import SynthConfig, write_dataset


def _parts(_: click.Context, __: click.Parameter, text: str) -> tuple[int, int, int]:
    """18:1:1 as three whole numbers."""
    try:
        train, val, test = (int(part) for part in text.split(":"))
    except ValueError:
        raise click.BadParameter(f"needs three whole numbers such as 18:1:1, got {text!r}") from None
    return train, val, test


def _names(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    """Minerals in the canonical order and each once; unknown ones are kept for the generator to refuse."""
    if text is None:
        return MINERALS
    asked = dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip())
    return tuple(sorted(asked, key=lambda name: MINERALS.index(name) if name in MINERALS else -1))


@click.command()
@click.argument("folder", type=LOCAL)
@click.option("-n", "--number", type=int, required=True, help="Number of images.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--size", type=int, default=384, show_default=True, help="Width and height, pixels.")
@click.option("--max-minerals", type=int, default=3, show_default=True, help="Most minerals in an image, 1 to 6.")
@click.option("--minerals", callback=_names, metavar="LIST", help="Only these, separated by commas. [default: all 36]")
@click.option(
    "--split",
    callback=_parts,
    default="18:1:1",
    show_default=True,
    metavar="A:B:C",
    help="Shares of training, validation and test; the default is the paper's.",
)
@click.option("--off-center", is_flag=True, help="Place minerals anywhere in the image, not in its middle.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes that draw images.")
@click.option("--overwrite", is_flag=True, help="Replace the images of an earlier run.")
def synth(
    folder: Path,
    number: int,
    seed: int,
    size: int,
    max_minerals: int,
    minerals: tuple[str, ...],
    split: tuple[int, int, int],
    off_center: bool,
    workers: int,
    overwrite: bool,
) -> None:
    """Generate labeled synthetic images of specimens into FOLDER.

    Writes images/, masks/ (one palette PNG per image: value k + 1 where mineral k is seen) and manifest.csv.
    They let you try the pipeline without data; a model trained on them knows nothing about real minerals. To score
    explanations use --off-center: if every mineral is in the middle, a map that always points there is right.
    """
    config = SynthConfig(seed, size, max_minerals, minerals, split, off_center)
    manifest = write_dataset(folder, number, config, workers=workers, overwrite=overwrite, progress=True)
    click.echo(f"{number} synthetic images, not photographs (their metadata says so): {manifest}")
