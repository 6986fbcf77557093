"""`mineral-bench gpu-pieces`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL

if TYPE_CHECKING:
    from pathlib import Path

# Folders on the machine that survive a delivery.
_KEPT, _OUT = "/var/tmp/pieces", "/var/tmp/gpu"  # noqa: S108


def _checked(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\d+\.\d", value):
        raise click.BadParameter(f"{value} is not of the form 9.0; nvidia-smi --query-gpu=compute_cap names it")
    return value


@click.command()
@click.argument("folder", metavar="DIR", type=LOCAL)
@click.option(
    "--wheels", type=LOCAL, metavar="DIR", help="Folder of wheels to pack. [default: download ONNX Runtime for CUDA]"
)
@click.option(
    "--piece-mb", default=45.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Size of a piece, MB."
)
@click.option(
    "--compute-capability",
    "capability",
    metavar="X.Y",
    callback=_checked,
    help="Leave out the code for other GPUs; 9.0 for an H100 or H200. [default: keep all]",
)
def gpu_pieces(folder: Path, wheels: Path | None, piece_mb: float, capability: str | None) -> None:
    """Pack what mineral-bench gpu needs into pieces in DIR, and test that they can be unpacked.

    For a machine without a package index to which at most 64 MiB can be copied at a time. Prints the commands for each
    delivery.
    """
    import tempfile
    from pathlib import Path

    from mineral_bench.gpu import pieces as room

    with tempfile.TemporaryDirectory() as scratch:
        if wheels is None:
            click.echo(f"Downloading {', '.join(room.PACKAGES)}", err=True)
            room.download(Path(scratch))
        found = sorted((wheels or Path(scratch)).glob("*.whl"))
        click.echo(f"Compressing {len(found)} wheels", err=True)
        pieces = room.pack(found, folder, round(piece_mb * 1e6), capability)
    names = room.rehearse(pieces, click.echo)
    click.echo(f"rehearsed: joined and unpacked, with {', '.join(names)}")
    click.echo(
        "\nOn the machine, after each delivery of one piece to the folder pieces/ of the checkout, then at the end:\n"
    )
    for command in room.commands(pieces, "pieces", _KEPT, _OUT):
        click.echo(command)
