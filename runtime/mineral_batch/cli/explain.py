"""`mineral-batch explain`: where the model looks, laid over the photographs."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from mineral_batch.cli.console import EXIT_SOME_PICTURES_FAILED
from mineral_batch.errors import DataError
from mineral_batch.images.discover import read_list
from mineral_batch.model.starter import starter_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.explain.maps import Explainer
    from mineral_batch.explain.run import Report

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("inputs", nargs=-1, type=_PATH)
@click.option("-o", "--output", default="explained", show_default=True, type=_PATH, help="Folder.")
@click.option("-m", "--model", type=_PATH, help="ONNX file; default: the starter model.")
@click.option("--list", "list_file", type=_PATH, help="File of inputs, one a line; - for stdin.")
@click.option("--top", type=click.IntRange(1), help="At most so many minerals of a picture.")
@click.option("--minimum", type=click.FloatRange(0, 1), help="From this probability; default: the model's thresholds.")
@click.option("--mineral", "minerals", multiple=True, metavar="NAME", help="Only this mineral; repeatable.")
@click.option("--maps", "with_maps", is_flag=True, help="Write the maps as numbers, too: an .npz a picture.")
@click.option("--side", default=1600, show_default=True, type=click.IntRange(16), help="Longest side of an overlay.")
@click.option(
    "--score", "masks", type=_PATH, metavar="MASKS", help="Score by a folder of masks of mineral-train synth."
)
@click.option("--deletion", "with_deletion", is_flag=True, help="With --score: deletion and insertion; slow.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Pictures at once; default: one per processor.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.pass_context
def explain(
    ctx: click.Context,
    inputs: tuple[Path, ...],
    output: Path,
    model: Path | None,
    list_file: Path | None,
    top: int | None,
    minimum: float | None,
    minerals: tuple[str, ...],
    with_maps: bool,
    side: int,
    masks: Path | None,
    with_deletion: bool,
    threads: int | None,
    quiet: bool,
) -> None:
    """Show where the model looks for each mineral that it finds in the photographs under INPUTS.

    INPUTS are folders, files, globs, zip and tar archives. OUTPUT/overlays gets a PNG per picture and mineral,
    OUTPUT/maps.csv lists them, and mineral-batch report --explained OUTPUT shows them beside the photographs. The maps
    come from the model's own graph: the starter model and every CNN with mean pooling have them, other models when they
    were exported with mineral-export onnx --explain. A picture that cannot be read is a row in OUTPUT/failures.csv and
    makes the exit code 3.
    """
    from mineral_batch.explain.maps import open_explainer
    from mineral_batch.explain.run import Asked, run

    warnings.filterwarnings("ignore", module="PIL")
    everything = [*inputs, *map(Path, read_list(list_file) if list_file else [])]
    if not everything:
        raise click.UsageError("nothing to explain: name folders or files, or give --list")
    if with_deletion and masks is None:
        raise click.UsageError("--deletion scores the minerals that masks show: give their folder with --score")
    if masks is not None and not masks.is_dir():
        raise DataError(f"no such folder of masks: {masks}")
    asked = Asked(top, minimum, minerals, side, with_maps, masks, with_deletion)
    with open_explainer(model or starter_path()) as explainer:
        _check_names(minerals, explainer.contract.labels)
        if not quiet:
            click.echo(_opening(explainer), err=True)
        with _bar(quiet) as bar:
            report = run(explainer, everything, output, asked, threads=threads, seen=bar.update)
    if not quiet:
        click.echo(_closing(report, output, explainer.maps.top, len(explainer.contract.labels)))
    if not report.pictures:
        raise DataError(f"none of {len(report.failures)} pictures could be read: see {output / 'failures.csv'}")
    if report.failures:
        ctx.exit(EXIT_SOME_PICTURES_FAILED)


def _opening(explainer: Explainer) -> str:
    contract, maps = explainer.contract, explainer.maps
    return f"{contract.name}: {len(contract.labels)} minerals, {maps.method} maps of {maps.grid[0]} x {maps.grid[1]}"


def _bar(quiet: bool) -> tqdm[None]:
    return tqdm(unit=" pictures", disable=True if quiet else None, dynamic_ncols=True)


def _check_names(minerals: Sequence[str], labels: Sequence[str]) -> None:
    for name in minerals:
        if name not in labels:
            close = difflib.get_close_matches(name, labels) or labels
            raise DataError(f"the model knows no mineral '{name}'; did you mean {', '.join(close)}?")


def _closing(report: Report, output: Path, most: int, labels: int) -> str:
    lines = [f"{len(report.rows)} maps of {report.pictures} pictures: {output / 'maps.csv'}"]
    if report.without:
        among = f" and among their {most} most probable" if most < labels else ""
        lines.append(
            f"{report.without} of {report.pictures} pictures have nothing to show: no mineral that was asked for is "
            f"probable enough in them{among} (--minimum lowers the bar)"
        )
    if report.failures:
        lines.append(f"{len(report.failures)} could not be read: {output / 'failures.csv'}")
    return "\n".join([*lines, *_score_lines(report)])


def _score_lines(report: Report) -> list[str]:
    from mineral_batch.explain.run import summary

    if not report.scores:
        return []
    figures = summary(report)
    lines = [
        f"Pointing game, {figures['maps']} maps: {figures['pointing']:.1%} on the mineral "
        f"(middle of the picture {figures['pointing_centre']:.1%}, a random point {figures['pointing_anywhere']:.1%}); "
        f"{figures['minerals_without_map']} minerals have no map"
    ]
    if figures["maps_off_centre"]:
        lines.append(
            f"Of the {figures['maps_off_centre']} minerals that are not in the middle: "
            f"{figures['pointing_off_centre']:.1%}"
        )
    for name, better in (("deletion", "lower"), ("insertion", "higher")):
        if name in figures:
            ours, centre = figures[name], figures[f"{name}_centre"]
            lines.append(f"{name.capitalize()} {ours:.3f} (middle first {centre:.3f}; {better} is better)")
    return lines
