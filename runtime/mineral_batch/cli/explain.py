"""`mineral-batch explain`: where the model looks, drawn over the images."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED
from mineral_batch.cli.paths import FETCHED, INPUT, LOCAL
from mineral_batch.cli.shared_options import max_pixels_option
from mineral_batch.errors import DataError
from mineral_batch.images.lists import read_list
from mineral_batch.model.starter import starter_path
from mineral_batch.storage.urls import without_secrets
from mineral_batch.words import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.explain.explainer import Explainer
    from mineral_batch.explain.run import ExplainResult


@click.command()
@click.argument("inputs", nargs=-1, type=INPUT)
@click.option("-o", "--output", default="explained", show_default=True, type=LOCAL, help="Output folder.")
@click.option("-m", "--model", type=FETCHED, help="ONNX file or its URL. [default: the starter model]")
@click.option("--list", "list_file", type=INPUT, help="File that names inputs, one per line; - for standard input.")
@click.option("--top", type=click.IntRange(1), help="Show at most this many minerals of an image. [default: all]")
@click.option(
    "--min-probability",
    "minimum",
    type=click.FloatRange(0, 1),
    help="Show minerals of this probability or more. [default: the model's thresholds]",
)
@click.option("--mineral", "minerals", multiple=True, metavar="NAME", help="Show only this mineral. Repeatable.")
@click.option("--maps", "write_maps", is_flag=True, help="Also write the maps as numbers: a .npz file for each image.")
@click.option(
    "--side", default=1600, show_default=True, type=click.IntRange(16), help="Longest side of an overlay, pixels."
)
@click.option(
    "--score",
    "masks",
    type=LOCAL,
    metavar="MASKS",
    help="Folder of masks, as from mineral-train synth: measures how often the maps are right.",
)
@click.option(
    "--deletion",
    "score_deletion",
    is_flag=True,
    help="With --score: also measure deletion and insertion, which is slow.",
)
@max_pixels_option
@click.option("--threads", type=click.IntRange(1, 1024), help="Images processed at once. [default: one per CPU]")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    inputs: tuple[Path | str, ...],
    output: Path,
    model: Path | None,
    list_file: Path | str | None,
    masks: Path | None,
    threads: int | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Show where the model looks for each mineral that it finds in the images under INPUTS.

    INPUTS are folders, files, glob patterns, zip and tar archives. OUTPUT/overlays gets a PNG per image and mineral,
    OUTPUT/maps.csv lists them, and mineral-batch report --explained OUTPUT shows them beside the photographs.

    The maps come from the model's own graph. The starter model and every CNN with mean pooling have them; export other
    models with mineral-export onnx --explain. An image that cannot be read becomes a row in OUTPUT/failures.csv, and
    the exit code is 3.
    """
    from mineral_batch.explain.explainer import open_explainer
    from mineral_batch.explain.run import ExplainOptions, run

    warnings.filterwarnings("ignore", module="PIL")
    all_inputs = [*inputs, *([read_list(list_file)] if list_file else [])]
    if not all_inputs:
        raise click.UsageError("no inputs: name folders or files, or use --list")
    if options["score_deletion"] and masks is None:
        raise click.UsageError("--deletion needs --score MASKS")
    if masks is not None and not masks.is_dir():
        raise DataError(f"no such folder of masks: {masks}")
    with open_explainer(model or starter_path()) as explainer:
        _check_names(options["minerals"], explainer.contract.labels)
        if not quiet:
            click.echo(_opening(explainer), err=True)
        with tqdm(unit=" images", disable=True if quiet else None, dynamic_ncols=True) as bar:
            explain_options = ExplainOptions(masks=masks, **options)
            result = run(explainer, all_inputs, output, explain_options, threads=threads, on_image=bar.update)
    if not quiet:
        click.echo(_closing(result, output, explainer))
    if not result.images and not result.failures:
        raise DataError(f"no images in {', '.join(without_secrets(map(str, inputs[:3]))) or list_file}")
    if not result.images:
        raise DataError(f"none of {len(result.failures)} images could be read: see {output / 'failures.csv'}")
    if result.failures:
        ctx.exit(EXIT_SOME_IMAGES_FAILED)


def _opening(explainer: Explainer) -> str:
    contract, maps = explainer.contract, explainer.maps
    return f"{contract.name}: {len(contract.labels)} minerals, {maps.method} maps of {maps.grid[0]} x {maps.grid[1]}"


def _check_names(minerals: Sequence[str], labels: Sequence[str]) -> None:
    for name in minerals:
        if name not in labels:
            close = difflib.get_close_matches(name, labels) or labels
            raise DataError(f"the model has no mineral '{name}'; did you mean {', '.join(close)}?")


def _closing(result: ExplainResult, output: Path, explainer: Explainer) -> str:
    from mineral_batch.explain.folder import NAMES

    written = ", ".join(str(output / name) for name in NAMES if (output / name).exists())
    lines = [f"{counted(len(result.rows), 'map')} of {counted(result.images)}: {written}"]
    if result.images_without_map:
        top, labels = explainer.maps.top, len(explainer.contract.labels)
        among = f" among its {top} most probable" if top < labels else ""
        lines.append(
            f"No map for {result.images_without_map} of {result.images} images: no mineral{among} reaches its "
            f"threshold (lower it with --min-probability)."
        )
    if result.failures:
        lines.append(f"{len(result.failures)} could not be read: {output / 'failures.csv'}")
    return "\n".join([*lines, *_score_lines(result)])


def _score_lines(result: ExplainResult) -> list[str]:
    means = result.mean_scores
    if means is None:
        return []
    lines = [
        f"Pointing game, {means['maps']} maps: {means['pointing']:.1%} on the mineral "
        f"(center of the image {means['pointing_center']:.1%}, a random point {means['pointing_anywhere']:.1%}); "
        f"{means['minerals_without_map']} minerals have no map"
    ]
    if means["maps_off_center"]:
        lines.append(
            f"Of the {means['maps_off_center']} minerals away from the center: {means['pointing_off_center']:.1%}"
        )
    for name, better in (("deletion", "lower"), ("insertion", "higher")):
        if name in means:
            ours, baseline = means[name], means[f"{name}_center"]
            lines.append(f"{name.capitalize()} {ours:.3f} (center first {baseline:.3f}; {better} is better)")
    return lines
