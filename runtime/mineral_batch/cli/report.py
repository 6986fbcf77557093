"""`mineral-batch report`: what a run found, to look at."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from mineral_batch.errors import DataError
from mineral_batch.report.build import INDEX, Options, write_file, write_folder
from mineral_batch.report.explained import read_explained
from mineral_batch.results.read import read_results

if TYPE_CHECKING:
    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.report.build import Made
    from mineral_batch.report.explained import Explained
    from mineral_batch.results.read import Results

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("results", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="HTML file, or with --folder a folder; default: in RESULTS.")
@click.option("--labels", type=_PATH, help="CSV (path,labels[,split]): adds how right the predictions are.")
@click.option("--split", help="Judge only the rows of --labels that have this in their column `split`.")
@click.option("--explained", type=_PATH, metavar="DIR", help="Output of mineral-batch explain: adds where it looks.")
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
    explained: Path | None,
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
    if explained and not size:
        raise click.UsageError("--explained is shown as thumbnails: leave out --thumbnails 0")
    table = read_results(results)
    accuracy = _judged(table, labels, split)
    maps = read_explained(explained, table) if explained else None
    target = output or results / ("report" if folder else "report.html")
    count = len(table.predictions.paths)
    total = count + (maps.count if maps else 0)
    with tqdm(total=total, unit="picture", desc="thumbnails", disable=None if size and not quiet else True) as bar:
        options = Options(base=photos, size=size, made=bar.update, explained=maps)
        made = (write_folder if folder else write_file)(table, accuracy, target, options)
    if plots:
        _plot(table, accuracy, plots)
    if quiet:
        return
    if size:
        _say_what_lacks(count, made, maps)
    click.echo(f"Report: {target / INDEX if folder else target}")


def _say_what_lacks(pictures: int, made: Made, maps: Explained | None) -> None:
    if missing := pictures - made.photographs:
        click.echo(f"{missing} of {pictures} photographs are not there or cannot be read: --photos says where they are")
    if maps and (lost := maps.count - made.maps):
        click.echo(f"{lost} of {maps.count} maps are not there or cannot be read: run mineral-batch explain again")
    if maps and maps.others:
        click.echo(f"{maps.others} maps are of photographs that are not in this run and were left out")


def _judged(table: Results, labels: Path | None, split: str | None) -> Accuracy | None:
    if labels is None:
        return None
    from mineral_batch.evaluation.curves import judge

    return judge(table, labels, split)


def _plot(table: Results, accuracy: Accuracy | None, folder: Path) -> None:
    from mineral_batch.report.plots import write_plots

    try:
        write_plots(table, accuracy, folder)
    except OSError as error:
        raise DataError(f"cannot write the plots into {folder}: {error.strerror or error}") from None
