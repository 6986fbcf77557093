"""`mineral-bench accuracy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_bench.cli.options import PATH, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("labels", type=PATH)
@click.argument("root", metavar="PHOTOS", type=PATH)
@click.argument("artefacts", nargs=-1, required=True, type=PATH, metavar="ARTEFACT...")
@click.option("--split", help="Only the rows of LABELS with this in their column `split`.")
@click.option("--backend", "backends", multiple=True, help="For model files; default: all that work here.")
@click.option("--bootstrap", default=1000, show_default=True, type=click.IntRange(0), help="Resamples; 0: none.")
@output
def accuracy(
    labels: Path,
    root: Path,
    artefacts: tuple[Path, ...],
    split: str | None,
    backends: tuple[str, ...],
    bootstrap: int,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """The mAP of each ARTEFACT on the photographs under PHOTOS that LABELS (CSV: path,labels[,split]) knows.

    An ARTEFACT is a checkpoint's folder (run by torch) or an ONNX file (run by every backend that works here, or those
    of --backend). The first is what the others are compared with; all of them get the same pixels.
    """
    from contextlib import ExitStack

    from mineral_bench.conditions import conditions
    from mineral_bench.report import Report
    from mineral_bench.studies import accuracy as bench

    before = conditions(data=f"{labels.name}{f', split {split}' if split else ''}")
    with ExitStack() as stack:
        opened, notes = bench.open_artefacts(artefacts, bench.roads_of(backends), stack)
        data = bench.read_labelled(labels, root, split, opened[0].contract.labels)
        scored = bench.score(opened, data)
    found = bench.judge(opened, scored, bootstrap)
    table = bench.table(found, scored, data, notes)
    Report("accuracy", before, bench.figures(found, scored), [table]).give(json_file, markdown_file)
