"""`mineral-bench engines`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import LOCAL
from mineral_bench.cli.options import limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("artifacts", nargs=-1, required=True, metavar="A B...")
@click.option("--photos", type=LOCAL, help="Measure on these photographs. [default: synthetic images]")
@click.option("--batch", type=click.IntRange(1), help="Images in a batch. [default: what suits the engine]")
@click.option(
    "--images",
    type=click.IntRange(1),
    help="Images in a round, rounded up to whole batches. [default: 16 batches a thread]",
)
@limit(120)
@output
def engines(
    artifacts: tuple[str, ...],
    photos: Path | None,
    batch: int | None,
    images: int | None,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure images a second of A, B and more forms of one model, side by side in interleaved rounds.

    Each is PATH or PATH@ENGINE[:PRECISION], as for mineral-export verify: a checkpoint folder (on torch), an ONNX file
    (on onnx-cpu if no engine is named) or a TensorRT plan, such as model.onnx@openvino:bfloat16. Each runs in its own
    process, on decoded images, with all threads that its engine uses. Speed and output are compared with those of the
    first.
    """
    from mineral_bench.conditions import conditions
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import engines as bench

    if len(artifacts) < 2:
        raise click.UsageError("name two artifacts or more: the others are compared with the first")
    before = conditions()
    result = bench.measure(artifacts, bench.Load(batch, images, photos), Plan(seconds=seconds))
    before |= {"files": bench.files(result), "data": result.what}
    BenchmarkReport("engines", before, bench.figures(result), [bench.table(result)]).write(json_file, markdown_file)
