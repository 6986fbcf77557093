"""`mineral-bench scaling`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED
from mineral_bench.cli.options import engine, limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=FETCHED)
@engine()
@click.option(
    "--per-day",
    multiple=True,
    default=(10_000, 100_000, 1_000_000, 10_000_000),
    show_default=True,
    type=click.IntRange(1),
    help="Images a day to size a machine for. Repeatable.",
)
@click.option(
    "--megapixels", default=12.0, show_default=True, type=click.FloatRange(0.01), help="Megapixels of those images."
)
@limit(160)
@output
def scaling(
    model: Path,
    backend: str,
    per_day: tuple[int, ...],
    megapixels: float,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure how the cost of MODEL grows with images, pixels, batch and cores, and size a machine for a task.

    Images are generated. Each cost is measured at several amounts and fitted with a line: a fixed part, and a part for
    each unit.
    """
    from contextlib import closing

    from mineral_batch.engines.registry import open_backend
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import scaling as bench

    before = conditions(**model_facts(model), backend=backend)
    plan = Plan(seconds=seconds / 4, warm_up=1)
    with closing(open_backend(model, backend)) as engine:
        decoding = bench.by_picture_size(engine.contract.input, plan)
        batches = bench.by_batch(engine, plan)
        need = bench.sizing(decoding, batches, engine, megapixels)
    counts = bench.by_count(model, backend, plan)
    cores = bench.by_cores(model, backend, plan)
    tables = [
        *(one.table() for one in (counts, decoding, batches, cores) if one),
        need.table(per_day, megapixels),
    ]
    found = {"studies": bench.figures([counts, decoding, batches, cores]), "sizing": vars(need)}
    BenchmarkReport("scaling", before, found, tables).write(json_file, markdown_file)
