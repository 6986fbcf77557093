"""`mineral-bench bombs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED
from mineral_bench.cli.options import engine, numbers, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=FETCHED)
@numbers("--decoders", default=(2, 16), text="Decode threads, then decode processes.")
@click.option("--bomb", "names", multiple=True, metavar="NAME", help="Only this one. Repeatable.")
@engine("onnx-cpu")
@output
def bombs(
    model: Path,
    decoders: tuple[int, ...],
    names: tuple[str, ...],
    backend: str,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure peak memory and time of runs of MODEL on small files that would decode to gigabytes."""
    from mineral_bench.bombs import BOMBS
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import bombs as bench

    before = conditions(**model_facts(model), backend=backend)
    pools = [(kind, count) for count in decoders for kind in ("threads", "processes")]
    blasts = list(bench.measure(model, pools, names or tuple(BOMBS), backend))
    BenchmarkReport("bombs", before, {"runs": bench.figures(blasts)}, [bench.table(blasts)]).write(
        json_file, markdown_file
    )
