"""`mineral-bench gpu-pieces`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import PATH

if TYPE_CHECKING:
    from pathlib import Path

# Folders on the machine that survive a delivery.
_KEPT, _OUT = "/var/tmp/pieces", "/var/tmp/gpu"  # noqa: S108


@click.command()
@click.argument("folder", metavar="DIR", type=PATH)
@click.option("--wheels", type=PATH, help="Folder of wheels to pack. [default: download ONNX Runtime for CUDA]")
@click.option(
    "--piece-mb", default=45.0, show_default=True, type=click.FloatRange(0, min_open=True), help="Piece size."
)
def gpu_pieces(folder: Path, wheels: Path | None, piece_mb: float) -> None:
    """Prepare the packages of mineral-bench gpu in pieces in DIR, and rehearse their deliveries.

    For a machine that reaches no package index and takes 64 MiB at a time. Prints the commands for each delivery.
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
        pieces = room.pack(found, folder, round(piece_mb * 1e6))
    names = room.rehearse(pieces, click.echo)
    click.echo(f"rehearsed: joined and unpacked, with {', '.join(names)}")
    click.echo(
        "\nOn the machine, after each delivery of one piece to the folder pieces/ of the checkout, then at the end:\n"
    )
    for command in room.commands(pieces, "pieces", _KEPT, _OUT):
        click.echo(command)
