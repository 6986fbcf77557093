"""`mineral-train adapt`: from labelled photographs to a model of one's own, in minutes and without a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import click
from tqdm import tqdm

from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED, counted
from mineral_batch.errors import DataError, MineralError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_path
from mineral_batch.system import pip_install
from mineral_train.adapt import compare
from mineral_train.adapt import run as adapting
from mineral_train.data.folders import TableFormat
from mineral_train.data.labels import SEPARATOR, read_labels

_ESTIMATE_AFTER = 32  # photographs
_SLOW = 60.0  # seconds


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The ONNX file to write.")
@click.option(
    "--from", "base", type=click.Path(path_type=Path), metavar="MODEL", help="Model to adapt. [default: the starter]"
)
@click.option(
    "--labels", type=click.Path(path_type=Path), help="Label set: a text file, one per line. [default: those in SOURCE]"
)
@click.option("--path-column", default="path", show_default=True, help="Column of paths in a CSV.")
@click.option("--labels-column", default="labels", show_default=True, help="Column of labels in a CSV.")
@click.option("--separator", default=SEPARATOR, show_default=True, help="What separates two labels in a CSV.")
@click.option("--root", type=click.Path(path_type=Path), help="Folder of a CSV's paths. [default: the CSV's]")
@click.option("--group-column", help="CSV column naming the specimen; its photographs stay in one fold.")
@click.option("--features", type=click.Path(path_type=Path), help="File that keeps features. [default: beside OUTPUT]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the folds.")
@click.option("--force", is_flag=True, help="Write the model even if it is worse than the old one.")
@click.pass_context
def adapt(
    context: click.Context,
    source: Path,
    output: Path,
    base: Path | None,
    labels: Path | None,
    path_column: str,
    labels_column: str,
    separator: str,
    root: Path | None,
    group_column: str | None,
    features: Path | None,
    seed: int,
    force: bool,
) -> None:
    """Fit a model to the labelled photographs in SOURCE, starting from the model that comes with the package.

    SOURCE is a CSV with columns path and labels, or a folder with one folder of photographs per label (`none` for
    photographs that show none of them). Labels may be any names. The backbone stays as it is and a new last layer is
    fitted, so that 500 photographs take about a minute on two CPU cores.

    Before it writes, it says whether the new model is better than the old one, per label, on photographs left out of
    the fit (5-fold cross-validation; photographs of one specimen and near-duplicates stay together).
    """
    start = time.monotonic()
    missing = [name for name in ("onnx", "sklearn") if find_spec(name) is None]
    if missing:
        raise DataError(f"adapt needs the Python package {' and '.join(missing)}: {pip_install('adapt')}")
    base = base or starter_path()
    if not output.absolute().parent.is_dir():
        raise DataError(f"cannot write {output}: no folder {output.absolute().parent}; create it first")
    known = read_contract(base).labels
    table = TableFormat(path_column, labels_column, separator, None, root)
    photos = adapting.read_photos(source, known, read_labels(labels) if labels else None, table)
    for line in _about(photos, known):
        click.echo(line)
    result = adapting.adapt(
        base,
        photos,
        features or output.with_name(f"{output.name}.features.npz"),
        name=output.stem,
        source=source.name,
        group_column=group_column,
        seed=seed,
        progress=_progress,
    )
    for line in [*compare.table(result.rows, result.mean), *_verdict(result)]:
        click.echo(line)
    if result.is_worse and not force:
        raise MineralError(f"{output} was not written: the old model is better on these photographs; --force writes it")
    adapting.write(result, output)
    click.echo(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB) after {time.monotonic() - start:.0f} s")
    click.echo(f"next: mineral-batch predict PHOTOS -m {output} -o results")
    if result.failures:
        first = result.failures[0]
        click.echo(
            f"{counted(len(result.failures), 'photograph')} could not be read and left out; the first: {first.path}: "
            f"{first.reason}",
            err=True,
        )
        context.exit(EXIT_SOME_IMAGES_FAILED)


def _about(photos: adapting.LabelledPhotos, known: tuple[str, ...]) -> Iterator[str]:
    own = [label for label in photos.labels if label not in known]
    yield (
        f"{counted(len(photos.rows), 'photograph')}, {counted(len(photos.labels), 'label')}"
        + (f", {len(own)} of them new to the model: {', '.join(own[:5])}" if own else "")
        + (" and more" if len(own) > 5 else "")
    )
    counts = {label: sum(label in row.labels for row in photos.rows) for label in photos.labels}
    rare = [label for label, count in counts.items() if count < compare.FEW]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        yield f"fewer than {compare.FEW} photographs, too few to learn much: {', '.join(rare[:5])}{more}"
    if photos.merged:
        yield f"{photos.merged:,} rows are the same photograph as another and were merged"
    if photos.contradictions:
        yield f"warning: {photos.contradictions:,} photographs are listed with different labels; they get all of them"


def _verdict(result: adapting.Result) -> Iterator[str]:
    mean = result.mean
    if mean is None:
        yield "the old model knows none of these labels, so there is nothing to compare with"
    elif mean.verdict == "better":
        yield "the new model is better than the old one on the labels that both know"
    elif mean.verdict == "worse":
        yield "the new model is WORSE than the old one on the labels that both know"
    else:
        yield "no clear difference between the new model and the old one on the labels that both know"
    calibration = result.contract.calibration
    if calibration is not None:
        yield (
            f"probabilities: expected calibration error {calibration.after.ece:.3f}, log loss "
            f"{calibration.after.log_loss:.3f} (cross-validated)"
        )


def _progress(places: Iterable[int], total: int) -> Iterator[int]:
    """Show a bar, and without a terminal one line if it takes long."""
    start = time.monotonic()
    bar = tqdm(places, total=total, desc="features", unit=" images", disable=None)
    for done, place in enumerate(bar, start=1):
        yield place
        if bar.disable and done == _ESTIMATE_AFTER:
            left = (time.monotonic() - start) / done * (total - done)
            if left > _SLOW:
                click.echo(f"computing the features of {total:,} photographs takes about {left / 60:.0f} min", err=True)
