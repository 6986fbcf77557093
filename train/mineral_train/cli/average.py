"""`mineral-train average`: one model from several runs of one recipe."""

from __future__ import annotations

from pathlib import Path

import click

from mineral_batch.cli.paths import INPUT, LOCAL
from mineral_batch.errors import DataError
from mineral_train.model.fetched import fetch_model


@click.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1, required=True, type=INPUT)
@click.option("-o", "--output", required=True, type=LOCAL, metavar="DIR", help="Folder to write.")
@click.option("--force", is_flag=True, help="Replace a checkpoint that is in the folder.")
def average(runs: tuple[Path | str, ...], output: Path, force: bool) -> None:
    """Average the weights of two or more RUNs (folders of `fit`) that started from the same weights.

    The runs may differ in seed, recipe or photographs. Check on a validation split whether the average is better than
    each of them: calibrate it, then compare.
    """
    from mineral_train.training.average import average as average_checkpoints
    from mineral_train.training.checkpoint import CONFIG

    if (output / CONFIG).exists() and not force:
        raise DataError(f"{output} has a checkpoint; give another -o, or --force")
    average_checkpoints([fetch_model(run) for run in runs], output)
    click.echo(f"Wrote {output}, the mean of {len(runs)} checkpoints; it is not calibrated")
    click.echo(f"Next: mineral-train calibrate {output} MANIFEST --split val --tune f1")
