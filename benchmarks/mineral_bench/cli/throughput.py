"""`mineral-bench throughput`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, INPUT, LOCAL
from mineral_bench.cli.options import engine, limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=FETCHED)
@click.argument("photos", nargs=-1, required=True, type=INPUT)
@engine()
@click.option("--device", type=click.IntRange(0), help="GPU by index. [default: the first]")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="Number format of the engine, as for mineral-batch predict.",
)
@click.option("--batch", type=click.IntRange(1), help="Images in a batch. [default: what suits the engine]")
@click.option("--decode-threads", type=click.IntRange(1), help="Threads that decode images. [default: one per CPU]")
@click.option(
    "--exact", is_flag=True, help="Decode large JPEGs at full resolution: slower, for nearly the same pixels."
)
@click.option("--compare", "saved", type=LOCAL, help="A file of --json: show what changed since, beyond noise.")
@limit(120)
@output
def throughput(
    model: Path,
    photos: tuple[Path | str, ...],
    backend: str,
    device: int | None,
    precision: str,
    batch: int | None,
    decode_threads: int | None,
    exact: bool,
    saved: Path | None,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure images a second of MODEL (.onnx) on PHOTOS (as for mineral-batch predict).

    Decoding alone, the engine alone and both together are timed in interleaved rounds, so that the whole can be
    compared with its parts. Latencies, times of the stages, memory and GPU are shown too. Only the files of --json and
    --markdown are written.
    """
    import json
    from contextlib import closing
    from itertools import islice

    from mineral_batch.engines.registry import open_backend
    from mineral_batch.errors import DataError
    from mineral_batch.images.discover import find_sources
    from mineral_batch.storage.urls import without_secrets
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport, load_figures
    from mineral_bench.studies import throughput as bench

    earlier = load_figures(saved, "throughput") if saved else None
    devices = [] if device is None else [device]
    with closing(open_backend(model, backend, devices=devices, batch_size=batch, precision=precision)) as engine:
        found = list(islice(find_sources(photos), 2000))
        if not found:
            raise DataError(f"no images in {', '.join(without_secrets(map(str, photos)))}")
        sources = bench.readable(found, engine)
        facts = {"data": f"{len(sources)} different images", "engine": f"{engine.name}, {engine.version}"}
        before = conditions(**model_facts(model), **facts, batch=batch or engine.batch_size)
        load = bench.make_load(sources, engine, batch, decode_threads, seconds / 40, exact)
        result = bench.measure(engine, load, Plan(seconds=seconds))
        report = BenchmarkReport("throughput", before, bench.figures(result, load), bench.tables(result, engine, load))
    if earlier:
        change = bench.compare(json.loads(report.json()), earlier)
        report = BenchmarkReport("throughput", before, report.figures, [*report.tables, change])
    report.write(json_file, markdown_file)
