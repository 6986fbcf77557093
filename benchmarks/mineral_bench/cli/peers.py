"""`mineral-bench peers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL
from mineral_bench.cli.options import SUBJECT, limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=SUBJECT)
@click.argument("photos", nargs=-1, required=True, type=LOCAL)
@click.option("--onnx", type=FETCHED, metavar="FILE", help="ONNX export of the checkpoint. [default: export it now]")
@click.option("--engines-only", is_flag=True, help="Measure the engines alone, on decoded images.")
@click.option("--compile", "compiled", is_flag=True, help="Include torch.compile, which warms up for minutes.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="ENGINE",
    help="Engine of ours. Repeatable. [default: all that work here]",
)
@click.option(
    "--also",
    multiple=True,
    metavar="FILE[@ENGINE]",
    help="Another file of the same model for ours, such as model.int8.onnx@openvino. Repeatable.",
)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Batch size of torch and timm.")
@click.option("--images", default=64, show_default=True, type=click.IntRange(1), help="Images in a round.")
@limit(150)
@output
def peers(
    model: Path,
    photos: tuple[Path, ...],
    onnx: Path | None,
    engines_only: bool,
    compiled: bool,
    backends: tuple[str, ...],
    also: tuple[str, ...],
    batch: int,
    images: int,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Measure the same MODEL and PHOTOS with other programs and with ours, side by side in interleaved rounds.

    MODEL is a checkpoint folder, the name of a preset (random weights) or, without torch, an ONNX file. Each program
    runs in its own process, and all outputs are compared.

    --seconds limits the rounds. Exporting MODEL, starting each program and its first prediction come on top: from half
    a minute for a small model to several minutes for the paper's, more with --compile.
    """
    import tempfile
    import time
    from dataclasses import replace
    from functools import partial
    from pathlib import Path

    from mineral_batch.model.onnx_file import read_contract
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.measure import Plan
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import peers as bench
    from mineral_bench.subject import find_subject

    started = time.monotonic()
    click.echo(f"At most {seconds:g} s of measuring, after exporting the model and starting each program", err=True)
    before = conditions(batch=batch)
    options = bench.PeerOptions(batch, compiled, engines_only=engines_only, also=also)
    with tempfile.TemporaryDirectory() as scratch:
        subject = find_subject(model, onnx, Path(scratch))
        contract = read_contract(subject.model)
        paths = bench.photographs(photos, contract.input, images)
        before |= {**model_facts(subject.model), "data": f"{len(paths)} images"}
        chosen = replace(options, backends=backends or options.backends)
        result = bench.measure(subject, paths, chosen, Plan(seconds=seconds), partial(click.echo, err=True))
    what = "engines alone, on decoded images" if engines_only else "from files to probabilities"
    before["seconds_in_all"] = round(time.monotonic() - started)
    table = bench.table(result, f"{contract.name}: {what}")
    BenchmarkReport("peers", before, bench.figures(result), [table]).write(json_file, markdown_file)
