"""`mineral-bench memory`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL
from mineral_bench.cli.options import engine, numbers, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=FETCHED)
@click.argument("photos", nargs=-1, type=LOCAL)
@numbers("--images", "counts", default=(1000, 20_000), text="Images in a run.")
@engine()
@click.option(
    "--decode-processes",
    type=click.IntRange(0),
    help="Processes that decode images; 0: threads. [default: as mineral-batch predict would take]",
)
@output
def memory(
    model: Path,
    photos: tuple[Path, ...],
    counts: tuple[int, ...],
    backend: str,
    decode_processes: int | None,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure the peak memory of runs of MODEL on few and on many images: it must not grow.

    Decode processes are included; memory that they share counts once. The images are links to those under PHOTOS,
    repeated, or small generated ones.
    """
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import memory as bench

    before = conditions(**model_facts(model), backend=backend, decode_processes=decode_processes)
    peaks = bench.measure(model, counts, photos, backend, decode_processes)
    BenchmarkReport("memory", before, {"runs": bench.figures(peaks)}, [bench.table(peaks)]).write(
        json_file, markdown_file
    )
