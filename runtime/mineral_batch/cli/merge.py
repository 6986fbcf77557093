"""`mineral-batch merge`: the tables of a run whose shards are all done."""

from __future__ import annotations

from pathlib import Path

import click

from mineral_batch.cli.console import say
from mineral_batch.cli.paths import INPUT
from mineral_batch.cli.pieces import planned_line, say_merged
from mineral_batch.cli.table_options import table_options
from mineral_batch.cluster.merge import merge as merge_parts
from mineral_batch.cluster.place import open_place
from mineral_batch.results.write import Tables


@click.command()
@click.argument("output", type=INPUT)
@table_options
@click.option("--allow-mixed-engines", is_flag=True, help="Merge parts that were made with different engines.")
@click.option("--exit-zero-on-failures", is_flag=True, help="Exit with 0 even if some images could not be read.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors and warnings.")
@click.pass_context
def merge(
    ctx: click.Context,
    output: Path | str,
    tables: Tables,
    allow_mixed_engines: bool,
    exit_zero_on_failures: bool,
    quiet: bool,
) -> None:
    """Write the tables of a run that `predict --shard` spread over many machines.

    OUTPUT is the folder or URL of that run. The tables are those that one machine would have written, byte for byte.
    Table options that were given to predict apply here too, and you can add others. If pieces are missing, merge names
    them. You can run it again at any time.
    """
    place = open_place(output)
    summary = merge_parts(place, tables, mixed=allow_mixed_engines)
    if not quiet:
        say(f"{planned_line(summary.planned, summary.images)}; images added since then are not in the tables")
    ctx.exit(say_merged(summary, place, quiet=quiet, exit_zero_on_failures=exit_zero_on_failures))
