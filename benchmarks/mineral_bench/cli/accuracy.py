"""`mineral-bench accuracy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL
from mineral_bench.cli.options import SUBJECT, output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("labels", type=FETCHED)
@click.argument("root", metavar="PHOTOS", type=LOCAL)
@click.argument("artifacts", nargs=-1, required=True, type=SUBJECT, metavar="ARTIFACT...")
@click.option(
    "--split", metavar="NAME", help="Use only the rows of LABELS with this value in the column `split`. [default: all]"
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="ENGINE",
    help="Engine for ONNX files. Repeatable. [default: all that work here]",
)
@click.option(
    "--bootstrap",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="Resamples for the 95% interval of the mAP; 0: no interval.",
)
@output
def accuracy(
    labels: Path,
    root: Path,
    artifacts: tuple[Path, ...],
    split: str | None,
    backends: tuple[str, ...],
    bootstrap: int,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Compute the mAP of each ARTIFACT on the images under PHOTOS that are in LABELS (CSV: path,labels[,split]).

    An ARTIFACT is a checkpoint folder (run by torch) or an ONNX file (run by every backend that works here, or those of
    --backend). All get the same pixels, and are compared with the first.
    """
    from contextlib import ExitStack

    from mineral_bench.conditions import conditions
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import accuracy as bench
    from mineral_export.verify.samples import labeled_images

    before = conditions(data=f"{labels.name}{f', split {split}' if split else ''}")
    with ExitStack() as stack:
        opened, notes = bench.open_candidates(artifacts, bench.engines_of(backends), stack)
        data = labeled_images(labels, opened[0].contract.labels, root, split)
        scored = bench.score(opened, data)
    results = bench.evaluate(opened, scored, bootstrap)
    table = bench.table(results, scored, data, notes)
    BenchmarkReport("accuracy", before, bench.figures(results, scored), [table]).write(json_file, markdown_file)
