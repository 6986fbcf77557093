"""`mineral-bench decode`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mineral_batch.cli.paths import FETCHED, LOCAL
from mineral_bench.cli.options import limit, output

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.report import Table


@click.command()
@click.argument("photos", nargs=-1, type=LOCAL)
@click.option(
    "--size", default=384, show_default=True, type=click.IntRange(8), help="Side of the model's input, pixels."
)
@click.option(
    "-m", "--model", type=FETCHED, help="ONNX file: also show what the decoders change in its output; sets --size."
)
@click.option(
    "--labels",
    type=LOCAL,
    metavar="CSV",
    help="Labels of PHOTOS (path,labels[,split]): also show what the decoders change in mAP.",
)
@click.option(
    "--split",
    metavar="NAME",
    help="Use only the rows of --labels with this value in the column `split`. [default: all]",
)
@limit(120)
@output
def decode(
    photos: tuple[Path, ...],
    size: int,
    model: Path | None,
    labels: Path | None,
    split: str | None,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure milliseconds an image and PSNR of every decoder that is installed.

    Images are generated (12 megapixels, 2 megapixels and 384 pixels in nine formats), or PHOTOS by format and size. One
    thread; the decoders of an image are timed in interleaved rounds.

    With --model, its output is compared for PHOTOS decoded in full (as `mineral-batch predict --exact` does), decoded
    as mineral-batch does by default, and at the smallest scale that covers the input.
    """
    from contextlib import ExitStack

    from mineral_batch.model.contract import InputSpec
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import decode as bench
    from mineral_bench.studies import decoder_effect
    from mineral_bench.studies.accuracy import open_candidates

    if (model and not photos) or (labels and not (model and len(photos) == 1)) or (split and not labels):
        raise click.UsageError("--model needs PHOTOS, --labels a --model and one folder, --split needs --labels")
    with ExitStack() as stack:
        candidate = open_candidates([model], [("onnx-cpu", "float32")], stack)[0][0] if model else None
        spec = candidate.contract.input if candidate else InputSpec(height=size, width=size)
        described = f"{spec.width} x {spec.height}, {spec.resize}, {spec.interpolation}"
        before = conditions(**(model_facts(model) if model else {}), input=described)
        groups, failures = bench.of_user(photos, spec) if photos else (bench.generated(), [])
        plan = Plan(seconds=seconds / len(groups), most=30, warm_up=1)
        results = [bench.measure(group, spec, plan) for group in groups]
        tables: list[Table] = [bench.table(results, failures)]
        figures: dict[str, Any] = {"groups": bench.figures(results), "unreadable": len(failures)}
        if candidate:
            table, effect = decoder_effect.compare(candidate, photos, labels, split)
            tables, figures = [*tables, table], {**figures, "answers": effect}
    BenchmarkReport("decode", before, figures, tables).write(json_file, markdown_file)
