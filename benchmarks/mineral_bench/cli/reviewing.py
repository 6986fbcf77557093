"""`mineral-bench reviewing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL
from mineral_bench.cli.options import output

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("manifest", type=LOCAL)
@click.argument("model", type=FETCHED)
@click.option("--features", required=True, type=LOCAL, metavar="DIR", help="Where features are kept.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Rounds of labeling.")
@click.option("--size", default=100, show_default=True, type=click.IntRange(10), help="Photographs in a round.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Repetitions.")
@click.option("--order", "names", multiple=True, metavar="NAME", help="Study this order; repeatable. [default: all]")
@click.option("--split", default="test", show_default=True, help="Split of MANIFEST that mAP is computed on.")
@click.option("--plot", "plot_file", type=LOCAL, help="Draw the curves into this file (.svg or .png).")
@output
def reviewing(
    manifest: Path,
    model: Path,
    features: Path,
    rounds: int,
    size: int,
    seeds: int,
    names: tuple[str, ...],
    split: str,
    plot_file: Path | None,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Compare orders of labeling: mAP against the number of photographs that a simulated reviewer labeled.

    MANIFEST is a CSV with the columns path, labels, split (train, val, test) and specimen. A first model is fitted on
    the features of MODEL in the split val; the reviewer labels the split train. MODEL must not have been trained on
    these photographs.
    """
    import numpy as np
    from tqdm import tqdm

    from mineral_bench.conditions import conditions, model_facts
    from mineral_bench.report import BenchmarkReport
    from mineral_bench.studies import reviewing as bench

    before = conditions(**model_facts(model), data=manifest.name, judged_on=split)
    photos = bench.read(manifest, model, features, lambda places, total: tqdm(places, total=total, disable=None))
    curves = {}
    for name, choose in bench.orders(names).items():
        runs = tqdm(range(seeds), desc=name, disable=None)
        curves[name] = np.array(
            [bench.curve(photos, choose, rounds=rounds, size=size, seed=seed, judged=split) for seed in runs]
        )
    table = bench.table(curves, size, f"mAP on {len(photos.rows(split))} photographs, by photographs labeled")
    if plot_file is not None:
        bench.plot(curves, size, plot_file)
    BenchmarkReport("reviewing", before, {"size": size, "map": curves}, [table]).write(json_file, markdown_file)
