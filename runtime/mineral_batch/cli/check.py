"""`mineral-batch check`: whether tables are whole and right."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from mineral_batch.results.check import check as find_problems

_SHOWN = 20


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.pass_context
def check(ctx: click.Context, path: Path) -> None:
    r"""Check PATH: a table that `predict` wrote, its run.json, or the whole folder.

    Prints one line per problem, and exits with 0 if there is none, else with 1.

    \b
    predictions.csv      path, minerals, [width, height, captured, latitude,
                         longitude,] one probability per label
    predictions.parquet  the same; minerals is a list
    predictions.jsonl    an object per picture: path, minerals, probabilities,
                         or path, failure {stage, reason}
    failures.csv         path, stage (read, decode, infer), reason
    run.json             schema 1: what made the tables, and their counts

    Beside its run.json a table must have the labels and as many rows as that says, and `minerals` must be those at or
    above the model's thresholds.
    """
    problems = find_problems(path)
    shown = list(islice(problems, _SHOWN))
    for problem in shown:
        click.echo(f"{path}: {problem}")
    more = sum(1 for _ in problems)
    if more:
        click.echo(f"{path}: and {more} more problems")
    if shown:
        ctx.exit(1)
    click.echo(f"{path}: no problems")
