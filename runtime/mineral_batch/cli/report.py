"""`mineral-batch report`: what a run found, to look at."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from mineral_batch.errors import DataError
from mineral_batch.report import INDEX, Options, write_file, write_folder
from mineral_batch.report.results import read_results

if TYPE_CHECKING:
    from mineral_batch.report.accuracy import Accuracy
    from mineral_batch.report.results import Results

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("results", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="HTML file, or with --folder a folder; default: in RESULTS.")
@click.option("--labels", type=_PATH, help="CSV (path,labels[,split]): adds how right the predictions are.")
@click.option("--split", help="Judge only the rows of --labels that have this in their column `split`.")
@click.option("--plots", type=_PATH, metavar="DIR", help="Also write the figures as PNG and SVG there.")
@click.option(
    "--thumbnails", "size", default=192, show_default=True, type=click.IntRange(0, 1024), help="Pixels; 0: none."
)
@click.option("--folder", is_flag=True, help="Write a folder with files for thumbnails and data: for big runs.")
@click.option("--photos", type=_PATH, metavar="DIR", help="Where relative paths start; default: here, or near RESULTS.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
def report(
    results: Path,
    output: Path | None,
    labels: Path | None,
    split: str | None,
    plots: Path | None,
    size: int,
    folder: bool,
    photos: Path | None,
    quiet: bool,
) -> None:
    """Make a page to look at what a run into RESULTS found: gallery, filters, counts, map and, with labels, accuracy.

    The page works offline in any browser and holds small copies of the photographs: pass it on as you would these.
    """
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata of a picture is no news for the user
    if split and not labels:
        raise click.UsageError("--split needs --labels")
    table = read_results(results)
    accuracy = _judged(table, labels, split)
    target = output or results / ("report" if folder else "report.html")
    count = len(table.predictions.paths)
    with tqdm(total=count, unit="picture", desc="thumbnails", disable=None if size and not quiet else True) as bar:
        options = Options(base=photos, size=size, made=bar.update)
        made = (write_folder if folder else write_file)(table, accuracy, target, options)
    missing = count - made if size else 0
    if plots:
        _plot(table, accuracy, plots)
    if quiet:
        return
    if missing:
        click.echo(f"{missing} of {count} photographs are not there or cannot be read: --photos says where they are")
    click.echo(f"Report: {target / INDEX if folder else target}")


def _judged(table: Results, labels: Path | None, split: str | None) -> Accuracy | None:
    if labels is None:
        return None
    from mineral_batch.report.accuracy import judge

    return judge(table, labels, split)


def _plot(table: Results, accuracy: Accuracy | None, folder: Path) -> None:
    from mineral_batch.report.plots import write_plots

    try:
        write_plots(table, accuracy, folder)
    except OSError as error:
        raise DataError(f"cannot write the plots into {folder}: {error.strerror or error}") from None
