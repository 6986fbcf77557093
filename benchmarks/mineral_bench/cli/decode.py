"""`mineral-bench decode`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import PATH, limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("photos", nargs=-1, type=PATH)
@click.option("--size", default=384, show_default=True, type=click.IntRange(8), help="Of the model's input, pixels.")
@limit(120)
@output
def decode(
    photos: tuple[Path, ...], size: int, seconds: float, json_file: Path | None, markdown_file: Path | None
) -> None:
    """Milliseconds a picture and PSNR of every decoder that is installed.

    On generated pictures of 12 megapixels, 2 megapixels and 384 pixels in five formats, or on PHOTOS by their formats
    and sizes. One thread; decoders of one picture are timed in interleaved rounds.
    """
    from mineral_batch.contract import InputSpec
    from mineral_bench import decode as bench
    from mineral_bench.conditions import conditions
    from mineral_bench.measure import Plan
    from mineral_bench.report import Report

    before = conditions(input=f"{size} x {size}, squashed, bicubic")
    spec = InputSpec(height=size, width=size)
    groups = bench.of_user(photos, spec) if photos else bench.generated()
    plan = Plan(seconds=seconds / len(groups), most=30, warm_up=1)
    results = [bench.measure(group, spec, plan) for group in groups]
    Report("decode", before, {"groups": bench.figures(results)}, [bench.table(results)]).give(json_file, markdown_file)
