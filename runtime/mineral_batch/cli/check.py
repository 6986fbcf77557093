"""`mineral-batch check`: checks the tables of a run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from mineral_batch.cli.console import EXIT_FOUND_SOMETHING
from mineral_batch.cli.paths import LOCAL
from mineral_batch.results.check import check as find_problems

_SHOWN = 20


@click.command()
@click.argument("path", type=LOCAL)
@click.pass_context
def check(ctx: click.Context, path: Path) -> None:
    """Check PATH: a table that `predict` wrote, its run.json, or the whole folder.

    Prints one line per problem. The exit code is 0 if there is none, else 1.

    \b
    predictions.csv        path, minerals, the columns of --columns, and
                           one probability per label
    predictions.excel.csv  the same, separated by semicolons
    predictions.parquet    the same; minerals is a list
    predictions.jsonl      an object per image: path, minerals,
                           probabilities; or path, failure {stage, reason}
    failures.csv           path, stage (read, decode, infer), reason
    run.json               how the tables were made, and their counts

    A table is compared with the run.json beside it: its labels, its number of rows, and that `minerals` lists the
    labels at or above the model's thresholds.
    """  # noqa: D301 - click's own mark, which a raw docstring would show
    problems = find_problems(path)
    shown = list(islice(problems, _SHOWN))
    for problem in shown:
        click.echo(f"{path}: {problem}")
    more = sum(1 for _ in problems)
    if more:
        click.echo(f"{path}: and {more} more problems")
    if shown:
        ctx.exit(EXIT_FOUND_SOMETHING)
    click.echo(f"{path}: no problems")
