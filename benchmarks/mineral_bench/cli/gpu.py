"""`mineral-bench gpu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL
from mineral_bench.gpu.plan import MINUTES, STAGES

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.option(
    "--out", type=LOCAL, required=True, metavar="DIR", help="Folder of the results; an earlier run there is continued."
)
@click.option(
    "--wheels", type=LOCAL, metavar="DIR", help="Folder of wheels, sdists, .tar.xz archives and pieces NAME.part00, ..."
)
@click.option("--photos", type=LOCAL, help="Verify on these photographs. [default: synthetic images]")
@click.option(
    "--minutes", default=MINUTES, show_default=True, type=click.FloatRange(0), help="Time limit of the run, minutes."
)
@click.option(
    "--redo", multiple=True, metavar="STAGE", type=click.Choice(list(STAGES)), help="Run this stage from its beginning."
)
@click.option("--dry-run", is_flag=True, help="Walk through all stages on the CPU with tiny sizes, in OUT/dry-run.")
def gpu(
    out: Path, wheels: Path | None, photos: Path | None, minutes: float, redo: tuple[str, ...], dry_run: bool
) -> None:
    """Measure everything in this project that needs a GPU, in stages.

    OUT/results.md, results.json and logs.txt are written after every stage. The same command continues where the last
    one stopped, also within a stage, and retries what failed. The machine needs PyTorch with CUDA, but no package
    index; benchmarks/GPU.md says what to copy to it. The exit code is 1 unless every stage is done.
    """
    from mineral_bench.gpu.run import make_settings, run_all

    try:
        settings = make_settings(out, wheels, photos, is_dry=dry_run)
    except TimeoutError as error:
        raise click.ClickException(str(error)) from None
    if not run_all(settings, minutes, redo, click.echo):
        raise click.exceptions.Exit(1)
