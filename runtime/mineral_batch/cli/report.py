"""`mineral-batch report`: a page to look at what a run found."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from mineral_batch.cli.edited import say_edited, say_edited_maps
from mineral_batch.cli.paths import FETCHED, LOCAL, RESULTS
from mineral_batch.cli.shared_options import SHOWN, level_options, photos_option, specimen_option
from mineral_batch.files import write_errors
from mineral_batch.minerals.table import LEVELS, load_table
from mineral_batch.report.build import INDEX, ReportOptions, require_report, write_file, write_folder
from mineral_batch.report.explained import read_explained
from mineral_batch.report.groups import find_groups
from mineral_batch.results.read import read_results
from mineral_batch.results.seals import require_sealed
from mineral_batch.results.specimens import CATALOG, FOLDER, REGEX
from mineral_batch.results.written import note_written, require_not_read, require_replaceable
from mineral_batch.storage.models import is_copy

if TYPE_CHECKING:
    from mineral_batch.evaluation.curves import Accuracy
    from mineral_batch.minerals.table import Level
    from mineral_batch.report.build import Written
    from mineral_batch.report.explained import Explained
    from mineral_batch.report.groups import Groups
    from mineral_batch.results.read import Results


@click.command()
@click.argument("results", type=RESULTS)
@click.option(
    "-o", "--output", type=LOCAL, help="HTML file, or folder with --folder. [default: report.html or report in RESULTS]"
)
@click.option(
    "--labels", type=FETCHED, metavar="FILE", help="Labels (CSV or a labeling tool's file): adds the accuracy."
)
@click.option(
    "--split",
    metavar="NAME",
    help="Use only the rows of --labels with this value in the column `split`. [default: all]",
)
@click.option(
    "--ignore-unknown",
    is_flag=True,
    help="With --labels: go on where a label that the model does not have looks like a misspelling of one that it has.",
)
@click.option(
    "--explained",
    type=LOCAL,
    metavar="DIR",
    help="Output folder of mineral-batch explain: adds maps of where the model looks.",
)
@click.option("--plots", type=LOCAL, metavar="DIR", help="Also write the charts to this folder, as PNG and SVG.")
@click.option(
    "--thumbnails",
    "size",
    default=192,
    show_default=True,
    type=click.IntRange(0, 1024),
    help="Longest side of the small images, pixels; 0: no images.",
)
@click.option("--folder", is_flag=True, help="Write a folder instead of one file: for large runs.")
@photos_option
@specimen_option(
    "Show the photographs of a specimen together, with one answer. RULE as for predict. [default: as in the run]"
)
@level_options(SHOWN)
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def report(
    results: Path,
    output: Path | None,
    labels: Path | None,
    split: str | None,
    ignore_unknown: bool,
    explained: Path | None,
    plots: Path | None,
    size: int,
    folder: bool,
    photos: Path | None,
    specimen: str | None,
    level: Level | None,
    minerals: Path | None,
    quiet: bool,
) -> None:
    """Make a page to look at the results of a run: gallery, filters, counts, map and, with labels, accuracy.

    RESULTS is the output folder of mineral-batch predict, or its URL. The page works offline in any browser. It
    contains small copies of the photographs, so share it only as you would share them.
    """
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata in an image does not concern the user
    if split and not labels:
        raise click.UsageError("--split needs --labels")
    if explained and not size:
        raise click.UsageError("--explained needs thumbnails: remove --thumbnails 0")
    if is_copy(results) and output is None:
        raise click.UsageError("nothing is written beside results at a URL: say with -o where the page goes")
    target = output or results / ("report" if folder else "report.html")
    if folder:
        require_report(target)
    else:
        require_not_read(target, (labels, minerals), "report")
        require_sealed(target, "report")
    table = read_results(results)
    say_edited(results, "the page shows the edited table")
    accuracy = _judged(table, labels, split, ignore_unknown=ignore_unknown)
    maps = read_explained(explained, table) if explained else None
    if explained:
        say_edited_maps(explained, "the page shows what it says")
    groups = _groups(table, level, specimen, minerals)
    count = len(table.predictions.paths)
    total = count + (maps.count if maps else 0)
    with tqdm(total=total, unit=" images", desc="thumbnails", disable=None if size and not quiet else True) as bar:
        options = ReportOptions(base=photos, size=size, on_thumbnail=bar.update, explained=maps, groups=groups)
        written = (write_folder if folder else write_file)(table, accuracy, target, options)
    if plots:
        _plot(table, accuracy, results, plots)
    if quiet:
        return
    if size:
        _echo_missing(count, written, maps)
    click.echo(f"Report: {target / INDEX if folder else target}")
    if plots:
        click.echo(f"Charts: {plots}")


def _echo_missing(images: int, written: Written, maps: Explained | None) -> None:
    if missing := images - written.photos:
        click.echo(f"No thumbnail for {missing} of {images} images (missing or unreadable): say where with --photos")
    if maps and (missing := maps.count - written.maps):
        click.echo(f"{missing} of {maps.count} maps are missing or unreadable: run mineral-batch explain again")
    if maps and maps.others:
        click.echo(f"{maps.others} maps belong to images that are not in this run; left out")


def _judged(table: Results, labels: Path | None, split: str | None, *, ignore_unknown: bool) -> Accuracy | None:
    if labels is None:
        return None
    from mineral_batch.evaluation.curves import judge

    return judge(table, labels, split, ignore_unknown=ignore_unknown)


def _groups(table: Results, level: Level | None, specimen: str | None, minerals: Path | None) -> Groups:
    """By the options, else by those of the run; but not by a file that the run named, which may be gone."""
    rule = specimen or str(table.manifest.get("specimen") or "")
    if not specimen and rule not in (FOLDER, CATALOG) and not rule.startswith(REGEX):
        rule = ""
    of_run = table.manifest.get("level")
    return find_groups(table, level or (of_run if of_run in LEVELS else None), rule or None, load_table(minerals))


def _plot(table: Results, accuracy: Accuracy | None, results: Path, folder: Path) -> None:
    from mineral_batch.report.plots import plot_files, write_plots

    for file in plot_files(table, accuracy, folder):
        require_replaceable(results, file, "report")
    with write_errors(folder):
        note_written(results, *write_plots(table, accuracy, folder))
