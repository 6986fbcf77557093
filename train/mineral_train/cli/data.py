"""`mineral-train data`: from folders or a table of photographs to a manifest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED
from mineral_batch.cli.paths import LOCAL, LOCAL_TEXT
from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import listed
from mineral_batch.results.written import note_written, require_not_read, require_replaceable
from mineral_train.cli._table import table_options
from mineral_train.data import census
from mineral_train.data.duplicates import MAX_DISTANCE, MIN_CORRELATION
from mineral_train.data.folders import TableFormat, folder_names, is_negative
from mineral_train.data.labels import label_faults, raise_faults, read_labels
from mineral_train.data.manifest import SPLITS, Manifest, write_manifest, write_table, write_text
from mineral_train.data.prepare import Preparation, Prepared, prepare
from mineral_train.data.source import found_root, specimen_column, split_column
from mineral_train.data.splits import PAPER_SHARES

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDERS = "folders"
REJECTED = "rejected.csv"
_FEW = 5  # test images of a label


def _shares(_context: click.Context, _option: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(":"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not three numbers such as 18:1:1 or 70:10:20") from None


@click.command()
@click.argument("source", type=LOCAL)
@click.option("-o", "--output", type=LOCAL, required=True, help="The manifest to write, a CSV.")
@click.option(
    "--labels",
    "label_set",
    type=LOCAL_TEXT,
    metavar=f"FILE|{FOLDERS}",
    help=f"Your own label set: a text file with one name per line, or `{FOLDERS}`: the names of the folders. "
    "[default: the paper's 36]",
)
@click.option("--ignore-unknown", is_flag=True, help="Leave out folders, or labels of a CSV, outside the label set.")
@click.option(
    "--imply-parents", is_flag=True, help="Label varieties with their species and group too: agate is quartz."
)
@table_options
@click.option(
    "--group-column",
    metavar="NAME",
    help="Column of a CSV that names the specimen; its images stay in one split. none: no such column. [default: "
    "specimen, if there is one]",
)
@click.option("--keep-split", is_flag=True, help="Keep the CSV's column `split`; an empty cell is train.")
@click.option(
    "--split",
    "shares",
    default=":".join(f"{share:g}" for share in PAPER_SHARES),
    show_default=True,
    callback=_shares,
    metavar="A:B:C",
    help="Shares of training, validation and test; the default is the paper's.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the split.")
@click.option(
    "--duplicate-distance",
    type=click.IntRange(-1, 16),
    default=MAX_DISTANCE,
    show_default=True,
    help="Largest difference between the hashes of near-duplicates, in bits of 64; -1: no search.",
)
@click.option(
    "--duplicate-correlation",
    type=click.FloatRange(0, 1),
    default=MIN_CORRELATION,
    show_default=True,
    help="Least correlation of the thumbnails of near-duplicates.",
)
@click.option("--threads", type=click.IntRange(1), help="Threads that decode images. [default: one per CPU]")
@click.pass_context
def data(context: click.Context, /, source: Path, output: Path, label_set: str | None, **options: Any) -> None:
    """Make a manifest of the photographs in SOURCE: check, merge, split, count.

    SOURCE is a folder with one folder of images per mineral (`none` for images that show none), or a CSV with a path
    and labels per image. An image in several folders becomes one row with several labels. Every image is decoded;
    those that fail are left out and listed in rejected.csv beside the manifest. Images of one specimen, and
    near-duplicates, stay in one split.
    """
    if not output.absolute().parent.is_dir():  # before minutes of decoding, not after
        raise DataError(f"cannot write {output}: no folder {output.parent}; create it first")
    for target in _targets(output):
        require_not_read(target, [source], "data")
        require_replaceable(output.parent, target, "mineral-train data")
    labels = _label_set(source, label_set)
    progress = partial(tqdm, desc="checking", unit=" images", disable=None)
    how = _preparation(**options)
    if root := found_root(source, how.table):
        click.echo(f"Relative paths start in {root}; they lead nowhere from {source.parent} (--root names another)")
        how = replace(how, table=replace(how.table, root=root))
    for line in _about_columns(source, how):
        click.echo(line)
    prepared = prepare(source, labels, _with_specimens(source, how), progress)
    _write(prepared, output)
    for line in _report(prepared, output):
        click.echo(line)
    if labels != MINERALS:
        click.echo(f"Train with: mineral-train fit {output} --labels {_labels_file(output)}")
    if prepared.rejected:
        context.exit(EXIT_SOME_IMAGES_FAILED)


def _label_set(source: Path, label_set: str | None) -> tuple[str, ...]:
    if label_set is None:
        return MINERALS
    if label_set != FOLDERS:
        return read_labels(label_set)
    names = tuple(name for name in folder_names(source) if not is_negative(name))
    raise_faults(f"the folders of {source}", label_faults(names))
    return names


def _preparation(
    *,
    path_column: str,
    labels_column: str,
    separator: str,
    root: Path | None,
    keep_split: bool,
    **options: Any,
) -> Preparation:
    table = TableFormat(path_column, labels_column, separator, "split" if keep_split else None, root)
    return Preparation(table=table, **options)


def _with_specimens(source: Path, how: Preparation) -> Preparation:
    if how.group_column is None:
        return replace(how, group_column=specimen_column(source, how.table))
    return replace(how, group_column=None) if how.group_column == "none" else how


def _about_columns(source: Path, how: Preparation) -> Iterator[str]:
    """Lines about the columns that are used, or not used, without having been named."""
    if how.group_column is None and specimen_column(source, how.table):
        yield "images of one specimen stay in one split (column specimen; --group-column none turns this off)"
    if how.table.split_column is None and split_column(source, how.table)[0]:
        yield "the column split is not kept, a new split is made: --keep-split keeps it, with its test images"


def _targets(output: Path) -> tuple[Path, Path, Path]:
    """The files that a manifest brings: the rejected images, the label set, itself."""
    return output.parent / REJECTED, _labels_file(output), output


def _write(prepared: Prepared, output: Path) -> None:
    """Write the manifest last: if it is there, the other files are too."""
    failures = [(failure.path, failure.stage, failure.reason) for failure in prepared.rejected]
    write_table(output.parent / REJECTED, ["path", "stage", "reason"], failures)
    if prepared.manifest.labels != MINERALS:
        write_text(_labels_file(output), "".join(f"{label}\n" for label in prepared.manifest.labels))
    write_manifest(prepared.manifest, output)
    note_written(output.parent, *filter(Path.is_file, _targets(output)))


def _labels_file(output: Path) -> Path:
    return output.with_suffix(".labels.txt")


def _report(prepared: Prepared, output: Path) -> Iterator[str]:
    manifest = prepared.manifest
    yield from (census.table_1(manifest), "", census.table_2(manifest), "")
    for split in SPLITS:
        if lacking := _lacking(manifest, split):
            yield f"labels with images, but none in {split}: {listed(lacking, 12)}"
    yield from _empty_splits(manifest)
    yield from _suggested_split(manifest)
    if prepared.merged:
        yield f"merged with another row of the same path or bytes: {prepared.merged:,}"
    if alike := len(set(prepared.near_duplicates.ravel().tolist())):
        yield f"images that are near-duplicates of another: {alike:,}"
    yield from _across_splits(prepared)
    if prepared.rejected:
        yield f"images that cannot be read, left out: {len(prepared.rejected):,}, see {output.parent / REJECTED}"
    yield f"wrote {output} ({len(manifest.rows):,} images)"


def _lacking(manifest: Manifest, split: str) -> list[str]:
    """The labels that have images, but none in this split."""
    absent = set(census.missing(manifest, split))
    nowhere = set(manifest.labels).intersection(*(census.missing(manifest, each) for each in SPLITS))
    return [label for label in manifest.labels if label in absent - nowhere]


def _empty_splits(manifest: Manifest) -> Iterator[str]:
    """Warn if a split lacks most of the labels: calibration, thresholds and figures would rest on nothing."""
    shown = int((sum(manifest.targets(split).sum(axis=0) for split in SPLITS) > 0).sum())
    for split in SPLITS[1:]:
        lacking = len(_lacking(manifest, split))
        if lacking * 2 > shown:
            yield (
                f"Warning: {split} has no image of {lacking} of {shown} labels, so "
                f"{'thresholds and calibration' if split == 'val' else 'test figures'} say nothing about them: "
                "use --split 70:15:15 or add images"
            )


def _suggested_split(manifest: Manifest) -> Iterator[str]:
    """Suggest larger parts for validation and test if most labels have hardly an image there."""
    counts = {split: manifest.targets(split).sum(axis=0) for split in SPLITS}
    shown = sum(counts.values()) > 0
    few = int((shown & (counts["test"] < _FEW)).sum())
    if few and counts["test"].sum() * 5 < sum(counts.values()).sum():
        yield (
            f"{few} of {int(shown.sum())} labels have fewer than {_FEW} images in test, so their figures say little: "
            "--split 70:10:20 gives them more"
        )


def _across_splits(prepared: Prepared) -> Iterator[str]:
    """Warn if a kept split has one specimen on both sides."""
    if groups := prepared.groups_across_splits():
        one, other = groups[0]
        yield (
            f"Warning: {len(groups):,} groups of one specimen or near-duplicates are in several splits, for example "
            f"{one.path} ({one.split}) and {other.path} ({other.split}); the test figure will be too good; "
            "without --keep-split they stay together"
        )
