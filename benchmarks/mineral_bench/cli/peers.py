"""`mineral-bench peers`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import PATH, limit, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=PATH)
@click.argument("photos", nargs=-1, required=True, type=PATH)
@click.option("--onnx", type=PATH, help="The export of the checkpoint; default: export it now.")
@click.option("--engines-only", is_flag=True, help="On pictures decoded before: the engines without the decoders.")
@click.option("--compile", "compiled", is_flag=True, help="torch.compile, too; it warms up for minutes.")
@click.option("--backend", "backends", multiple=True, help="Of ours; default: all that work here.")
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1), help="Of torch and timm.")
@click.option("--pictures", default=64, show_default=True, type=click.IntRange(1), help="In a round.")
@limit(150)
@output
def peers(
    model: Path,
    photos: tuple[Path, ...],
    onnx: Path | None,
    engines_only: bool,
    compiled: bool,
    backends: tuple[str, ...],
    batch: int,
    pictures: int,
    seconds: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """The same MODEL and PHOTOS by other programs' ways and ours, side by side in interleaved rounds.

    MODEL is a checkpoint's folder, a preset's name (random weights) or, without torch's ways, an ONNX file. Every way
    runs in a process of its own and all answers are compared.
    """
    import tempfile
    from dataclasses import replace
    from pathlib import Path

    from mineral_batch.model.onnx_file import read_contract
    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.measure import Plan
    from mineral_bench.report import Report
    from mineral_bench.studies import peers as bench
    from mineral_bench.subject import find_subject

    before = conditions(batch=batch)
    options = bench.Options(batch, compiled, engines_only=engines_only)
    with tempfile.TemporaryDirectory() as scratch:
        subject = find_subject(model, onnx, Path(scratch))
        contract = read_contract(subject.model)
        paths = bench.photographs(photos, contract.input, pictures)
        before |= {**model_facts(subject.model), "data": f"{len(paths)} pictures"}
        chosen = replace(options, backends=backends or options.backends)
        found = bench.measure(subject, paths, chosen, Plan(seconds=seconds))
    what = "engines alone, pictures decoded before" if engines_only else "from files to probabilities"
    table = bench.table(found, f"{contract.name}: {what}")
    Report("peers", before, bench.figures(found), [table]).give(json_file, markdown_file)
