"""`mineral-bench cluster`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import numbers, output

if TYPE_CHECKING:
    from pathlib import Path

_COUNT = click.IntRange(1)


@click.command()
@numbers("--workers", default=(1, 2, 4, 8), text="Workers.")
@click.option("--rate", default=3000.0, show_default=True, type=click.FloatRange(1), help="Images/s of an engine.")
@click.option("--latency", default=0.03, show_default=True, type=click.FloatRange(0), help="Seconds of a request.")
@click.option("--piece-images", default=2000, show_default=True, type=_COUNT, help="Images in a piece.")
@click.option("--pieces", default=24, show_default=True, type=_COUNT, help="Pieces for each worker.")
@click.option("--sample", default=20, show_default=True, type=_COUNT, help="Images that a simulated one stands for.")
@numbers(
    "--objects",
    default=(10_000, 100_000, 1_000_000),
    text="Objects in a bucket whose listing, resume and memory are measured.",
)
@output
def cluster(
    workers: tuple[int, ...],
    rate: float,
    latency: float,
    piece_images: int,
    pieces: int,
    sample: int,
    objects: tuple[int, ...],
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Simulate `mineral-batch predict --cluster`: engines sleep, the bucket is made up, everything else is real.

    Needs the extra ray. Shows how close to linear the speedup is, and the time and memory that listing, resuming and
    merging take.
    """
    from mineral_bench.conditions import conditions
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import cluster as bench

    before = conditions()
    load = bench.Load(rate, latency, piece_images, sample, pieces)
    scaled, grown = bench.efficiency(load, workers), bench.growth(objects, latency)
    figures = {"efficiency": {**vars(scaled), "load": vars(load)}, "growth": vars(grown)}
    BenchmarkReport("cluster", before, figures, [scaled.table(), grown.table()]).write(json_file, markdown_file)
