"""`mineral-batch deliver`: the answers of a run in the formats that collections use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
from tqdm import tqdm

from mineral_batch.cli.edited import say_edited
from mineral_batch.cli.paths import LOCAL
from mineral_batch.cli.shared_options import level_options, photos_option, specimen_option
from mineral_batch.errors import DataError
from mineral_batch.results.schema import FAILURES
from mineral_batch.words import counted

if TYPE_CHECKING:
    from mineral_batch.deliver.folders import Kind
    from mineral_batch.deliver.records import Delivery
    from mineral_batch.minerals.table import Level

_FILES = {
    "excel": "minerals.xlsx",
    "csv-excel": "minerals.csv",
    "geojson": "minerals.geojson",
    "gpkg": "minerals.gpkg",
    "darwin-core": "darwin-core.zip",
    "dwca": "dwca.zip",
}
_DARWIN_CORE = ("darwin-core", "dwca")
_FOLDERS = {"xmp": "xmp", "folders": "by-mineral"}
# A folder of each, whose files only a delivery may replace.
_TOOLS = ("label-studio", "cvat", "coco", "fiftyone")
_EMBEDDED = "embedded"
# How often a format reads the records.
_PASSES = {"darwin-core": 6, "dwca": 4, "xmp": 2, "label-studio": 2, "cvat": 3, "coco": 4, "fiftyone": 2}
_REASONS = 5  # that are shown


@click.command()
@click.argument("results", type=LOCAL)
@click.option(
    "--as", "form", required=True, type=click.Choice([*_FILES, *_FOLDERS, *_TOOLS]), help="Format; see above."
)
@click.option("-o", "--output", type=LOCAL, help="File or folder to write. [default: in RESULTS]")
@click.option(
    "--min-probability",
    "least",
    type=click.FloatRange(0, 1, min_open=True),
    help="Take only answers of the model with this probability or more. [default: the model's thresholds]",
)
@photos_option
@click.option(
    "--join", "inventory", type=LOCAL, metavar="CSV", help="Inventory of the collection, joined to the images."
)
@click.option("--on", "column", metavar="COLUMN", help="Column of --join with the inventory numbers.")
@click.option(
    "--match", metavar="REGEX", help="Pattern of the inventory number in a path. [default: any number of the inventory]"
)
@click.option("--names", type=LOCAL, metavar="CSV", help="Names that the collection uses (mineral,name).")
@specimen_option(
    "A record per specimen: folder, catalog, regex=PATTERN, a CSV (path,specimen), or inventory (of --join)."
)
@level_options("If no mineral is certain, answer with the species, group or class that is, up to this level.")
@click.option(
    "--id-prefix",
    metavar="TEXT",
    help="darwin-core, dwca: identifiers of specimens are this and their number, such as https://museum.org/object/. "
    "[default: UUIDs]",
)
@click.option("--beside", is_flag=True, help="xmp: write the sidecars beside the photographs.")
@click.option("--embed", is_flag=True, help="xmp: write into copies of the photographs.")
@click.option("--adobe-names", is_flag=True, help="xmp: photo.xmp instead of photo.jpg.xmp.")
@click.option("--root", default="Mineral", show_default=True, metavar="TEXT", help="xmp: top-level keyword.")
@click.option(
    "--link",
    type=click.Choice(["symbolic", "hard", "copy"]),
    default="symbolic",
    show_default=True,
    help="folders: links to the photographs, or copies.",
)
@click.option(
    "--thumbnails",
    type=click.IntRange(0, 256),
    default=0,
    help="excel: small images of this many pixels. [default: none]",
)
@click.option("--undo", is_flag=True, help="xmp, folders: remove what an earlier delivery wrote, and nothing else.")
def deliver(
    results: Path,
    form: str,
    output: Path | None,
    least: float | None,
    photos: Path | None,
    inventory: Path | None,
    column: str | None,
    match: str | None,
    names: Path | None,
    specimen: str | None,
    level: Level | None,
    minerals: Path | None,
    id_prefix: str | None,
    beside: bool,
    embed: bool,
    adobe_names: bool,
    root: str,
    link: str,
    thumbnails: int,
    undo: bool,
) -> None:
    """Write the answers in RESULTS in a format that collections use.

    RESULTS is the output folder of predict. Decisions made in mineral-batch review take precedence over the model;
    every record says which of the two it is.

    \b
    excel          a workbook with filters: images, minerals, how it was made
    csv-excel      semicolons and decimal commas, for Excel in Europe
    xmp            sidecars with keywords for Lightroom, digiKam, darktable, ...
    folders        a tree by mineral, of links or copies
    geojson, gpkg  where the photographs were taken, for a map
    darwin-core    a Darwin Core Data Package (zip)
    dwca           a Darwin Core Archive (zip), for older systems
    label-studio, cvat, coco, fiftyone
                   for labeling tools; evaluate, review --labels,
                   audit and mineral-train read back what they export

    The photographs are never changed; --embed writes into copies, whose pixels stay as they are. --join and --on add to
    each image the row of the inventory whose number is in its path; in Darwin Core, images with the same number are one
    specimen. With --specimen, tables and maps have one row per specimen, and every photograph gets the answer of its
    specimen.
    """  # noqa: D301 - click reads the control character
    from mineral_batch.deliver.inventory import read_names
    from mineral_batch.deliver.records import read_delivery
    from mineral_batch.deliver.specimens import by_specimen
    from mineral_batch.results.written import note_written, require_not_read, require_replaceable

    _require_sensible(
        form,
        has_output=output is not None,
        beside=beside,
        embed=embed,
        undo=undo,
        id_prefix=id_prefix,
        is_joined=(inventory is not None, column is not None, match is not None),
    )
    say_edited(results, "the edited table is delivered")
    delivery = read_delivery(results, photos, least, level, minerals)
    if inventory and column:
        delivery = _joined(delivery, inventory, column, match)
    if specimen:
        delivery = by_specimen(delivery, specimen)
    if names:
        delivery = replace(delivery, own_names=read_names(names, delivery.labels))
    target = output or results / (_EMBEDDED if embed else _FILES.get(form) or _FOLDERS.get(form, form))
    written = _written(form, target)
    for file in written:
        require_not_read(file, (inventory, names, minerals), "deliver")
        require_replaceable(results, file, "deliver")
    passes = _PASSES.get(form, 1) - embed
    write: dict[str, Callable[[], str]] = {
        "excel": lambda: _excel(delivery, target, thumbnails),
        "csv-excel": lambda: _csv(delivery, target),
        "geojson": lambda: _places(delivery, target, form),
        "gpkg": lambda: _places(delivery, target, form),
        "darwin-core": lambda: _darwin_core(delivery, target, form),
        "dwca": lambda: _darwin_core(delivery, target, form),
        "xmp": lambda: (
            _embedded(delivery, target, root, undo=undo, adobe=adobe_names)
            if embed
            else _xmp(delivery, None if beside else target, root, undo=undo, adobe=adobe_names)
        ),
        "folders": lambda: _folders(delivery, target, cast("Kind", link), undo=undo),
        **dict.fromkeys(_TOOLS, lambda: _tool(delivery, target, form)),
    }
    with tqdm(total=passes * len(delivery), unit=" records", disable=None, leave=False) as bar:
        delivery = replace(delivery, on_record=bar.update, id_prefix=id_prefix)
        done = write[form]()
    for file in written:
        note_written(results, file)
    if not undo:
        click.echo(_summary(delivery))
    click.echo(done)


def _require_sensible(
    form: str,
    *,
    has_output: bool,
    beside: bool,
    embed: bool,
    undo: bool,
    id_prefix: str | None,
    is_joined: tuple[bool, ...],
) -> None:
    """Refuse options that do not belong together."""
    if beside and has_output:
        raise click.UsageError("--beside writes beside the photographs: omit -o")
    if embed and (beside or form != "xmp"):
        raise click.UsageError("--embed is for --as xmp, in a folder of its own: leave --beside out")
    if id_prefix is not None and (form not in _DARWIN_CORE or not id_prefix.strip()):
        raise click.UsageError("--id-prefix is for --as darwin-core and --as dwca, and not empty")
    if undo and form not in _FOLDERS:
        raise click.UsageError(f"--undo is for xmp and folders; what --as {form} writes can be deleted")
    has_inventory, has_column, has_match = is_joined
    if has_inventory != has_column or (has_match and not has_inventory):
        raise click.UsageError("--join CSV and --on COLUMN belong together; --match needs them")


def _written(form: str, target: Path) -> list[Path]:
    """The files of which a delivery remembers that it wrote them."""
    if form in _TOOLS:
        from mineral_batch.deliver.labeling_tools import FILES

        return [target / name for name in FILES[form]]
    return [target] if form in _FILES else []


def _summary(delivery: Delivery) -> str:
    """How many answers there are, who gave them, and how many images have none."""
    counts = delivery.count()
    said = f"{counts.answered:,} with an answer, {counts.decided:,} decided by people"
    unsure = f", {counts.unsure:,} unsure" if counts.unsure else ""
    failed = f"; {counts.failed:,} more could not be read ({FAILURES})" if counts.failed else ""
    images = counted(sum(map(len, delivery.images.values())) or len(delivery))
    what = f"{counted(len(delivery), 'specimen')} of {images}" if delivery.has_specimens else images
    return f"{what}: {said}{unsure}{failed}"


def _excel(delivery: Delivery, path: Path, thumbnail: int) -> str:
    from mineral_batch.deliver.sheets import MOST_THUMBNAILS, write_workbook

    write_workbook(delivery, path, thumbnail=thumbnail)
    is_cut = thumbnail and len(delivery) > MOST_THUMBNAILS
    note = f"\nThumbnails: in the first {MOST_THUMBNAILS:,} rows only" if is_cut else ""
    return f"{path}{note}"


def _csv(delivery: Delivery, path: Path) -> str:
    from mineral_batch.deliver.sheets import write_semicolons

    write_semicolons(delivery, path)
    return str(path)


def _tool(delivery: Delivery, folder: Path, form: str) -> str:
    from mineral_batch.deliver.labeling_tools import FILES, WRITERS

    WRITERS[form](delivery, folder)
    return ", ".join(str(folder / name) for name in FILES[form])


def _joined(delivery: Delivery, inventory: Path, column: str, match: str | None) -> Delivery:
    from mineral_batch.deliver.inventory import join, read_inventory

    joined = join(read_inventory(inventory, column, match), delivery.results.predictions.paths)
    click.echo(
        f"{counted(len(joined.numbers))} joined with {inventory}; {joined.unmatched:,} without a number, "
        f"{joined.ambiguous:,} ambiguous; {counted(joined.unused, 'row')} of the inventory without an image"
    )
    if repeated := len(joined.inventory.repeated):
        click.echo(f"Warning: {counted(repeated, 'number')} of {inventory} in several rows, not joined", err=True)
    return replace(delivery, joined=joined)


def _darwin_core(delivery: Delivery, path: Path, form: str) -> str:
    from mineral_batch.deliver.darwin_core import write_archive, write_data_package

    written = (write_archive if form == "dwca" else write_data_package)(delivery, path)
    specimens = "" if delivery.has_specimens else f"{counted(written, 'specimen')}: "
    hint = ""
    if delivery.id_prefix is None:
        hint = "\nIdentifiers are UUIDs; --id-prefix makes them those of your collection (do it before you publish)"
    return f"{specimens}{path}{hint}"


def _places(delivery: Delivery, path: Path, form: str) -> str:
    from mineral_batch.deliver.places import write_geojson, write_geopackage

    written, without = (write_geopackage if form == "gpkg" else write_geojson)(delivery, path)
    noun = "specimen" if delivery.has_specimens else "image"
    return f"{counted(written, noun)} with a place, {without:,} without: {path}"


def _folders(delivery: Delivery, tree: Path, kind: Kind, *, undo: bool) -> str:
    from mineral_batch.deliver.folders import make_folders

    if undo:
        return _undone(tree)
    counts = make_folders(delivery, tree, kind)
    missing = f"; {counted(counts.missing)} not found as files (--photos DIR, or unpack archives)"
    removed = f", {counts.removed:,} of an earlier delivery removed" if counts.removed else ""
    made = f"{counted(counts.made, 'file')} made, {counts.kept:,} already there{removed}"
    return f"{made}{missing if counts.missing else ''}: {tree}"


def _undone(tree: Path) -> str:
    from mineral_batch.deliver import made

    removed, left = made.undo(tree)
    kept = f"; {counted(left, 'file')} changed since, left there" if left else ""
    return f"{counted(removed, 'file')} removed from {tree}{kept}"


def _embedded(delivery: Delivery, tree: Path, root: str, *, undo: bool, adobe: bool) -> str:
    if undo:
        return _undone(tree)
    from mineral_batch.deliver.embedded import write_copies

    counts = write_copies(delivery, tree, root, with_suffix=not adobe)
    lines = [f"{counted(counts.embedded, 'copy', 'copies')} with the answer embedded, in {tree}"]
    for reason, number in counts.sidecars.most_common(_REASONS):
        lines.append(f"{counted(number, 'copy', 'copies')} with a sidecar instead: {reason}")
    if counts.missing:
        lines.append(f"{counted(counts.missing)} not found as files (--photos DIR, or unpack archives)")
    return "\n".join(lines)


def _xmp(delivery: Delivery, tree: Path | None, root: str, *, undo: bool, adobe: bool) -> str:
    from mineral_batch.deliver import trees

    if undo:
        removed = trees.remove_sidecars(delivery, tree, with_suffix=not adobe)
        if not removed:
            hint = "" if tree is None else " (--undo --beside for those beside the photographs)"
            raise DataError(f"nothing to undo: no sidecar of an earlier delivery {_where(tree)}{hint}")
        return f"the answers were taken out of {counted(removed, 'sidecar')} {_where(tree)}; empty ones were removed"
    counts = trees.write_sidecars(delivery, tree, root, with_suffix=not adobe)
    merged = f"{counts.updated:,} updated, {counts.merged:,} merged with what was there"
    new = f"{counted(counts.new, 'sidecar')} new, {merged}, {_where(tree)}"
    missing = f"; {counted(counts.missing)} not found as files" * bool(counts.missing)
    long = f"; {counted(counts.too_long)} without one, as the name is too long" * bool(counts.too_long)
    return f"{new}{missing}{long}"


def _where(tree: Path | None) -> str:
    return "beside the photographs" if tree is None else f"in {tree}"
