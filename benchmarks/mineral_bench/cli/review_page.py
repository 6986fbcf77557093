"""`mineral-bench review-page`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL
from mineral_bench.cli.options import output

if TYPE_CHECKING:
    from pathlib import Path


@click.command("review-page")
@click.argument("results", type=LOCAL)
@click.option("--photos", type=LOCAL, default=".", metavar="DIR", help="Folder where relative paths start.")
@click.option("--count", default=100, show_default=True, type=click.IntRange(1), help="Decisions to measure.")
@click.option("--pause", default=1.0, show_default=True, type=click.FloatRange(0), help="Seconds before each key.")
@click.option("--labels", type=LOCAL, metavar="CSV", help="True labels of the same photographs: counts the keys.")
@click.option("--split", metavar="NAME", help="With --labels: only its rows of this split.")
@click.option(
    "--thinking",
    multiple=True,
    type=click.FloatRange(0),
    default=(1, 3, 6),
    show_default=True,
    help="Assumed seconds in which a reviewer looks at a photograph; repeatable.",
)
@output
def review_page(
    results: Path,
    photos: Path,
    count: int,
    pause: float,
    labels: Path | None,
    split: str | None,
    thinking: tuple[float, ...],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure what the page of `mineral-batch review` adds to a reviewer's time, in Chromium.

    RESULTS is the output folder of predict on at least COUNT + 1 photographs. Needs the packages playwright and those
    of the extra `review`, and Chromium on the PATH.
    """
    from mineral_bench.conditions import conditions
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import review_page as bench

    before = conditions(pause=pause)
    seconds = bench.waits(results, photos, count, pause)
    found = bench.count_keys(results, labels, split) if labels else None
    tables = bench.table(f"{pause:g} s before each key", seconds, found, thinking)
    record = {"seconds": seconds, "keys": asdict(found) if found else None}
    BenchmarkReport("review-page", before, record, tables).write(json_file, markdown_file)
