"""`mineral-train adapt`: from labeled photographs to a model of one's own, in minutes and without a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from mineral_batch.cli.console import EXIT_INTERRUPTED, EXIT_SOME_IMAGES_FAILED
from mineral_batch.cli.paths import FETCHED, INPUT, LOCAL
from mineral_batch.errors import DataError, MineralError
from mineral_batch.model.onnx_file import read_contract, require_model_or_nothing
from mineral_batch.model.starter import starter_path
from mineral_batch.storage.models import fetch
from mineral_batch.storage.urls import is_url
from mineral_batch.system import require_packages
from mineral_batch.types import Failure
from mineral_batch.words import counted
from mineral_train.adapt import backbones, compare
from mineral_train.adapt import run as adapting
from mineral_train.adapt.photos import LabeledPhotos, old_labels, read_photos
from mineral_train.cli._table import table_options
from mineral_train.data.folders import TableFormat
from mineral_train.data.labels import read_labels
from mineral_train.data.manifest import SPLITS, table_folder
from mineral_train.data.parents import reading, with_parents
from mineral_train.data.source import found_root, specimen_column, split_column

_LINE_EVERY = 20.0  # seconds, without a terminal
_AUTO, _NONE = "auto", "none"


@click.command()
@click.argument("source", type=INPUT)
@click.option("-o", "--output", required=True, type=LOCAL, metavar="FILE", help="ONNX file to write.")
@click.option(
    "--from",
    "base",
    type=FETCHED,
    metavar="MODEL",
    help="ONNX file to adapt, or its URL. [default: the starter model]",
)
@click.option(
    "--labels",
    type=FETCHED,
    metavar="FILE",
    help="Your own label set: a text file with one name per line. [default: those in SOURCE]",
)
@table_options
@click.option(
    "--group-column",
    metavar="NAME",
    help="Column of a CSV that names the specimen; its images stay in one fold. none: no such column. [default: "
    "specimen, if there is one]",
)
@click.option(
    "--split-column",
    metavar="NAME",
    help="Column of a CSV whose `test` rows are held out; none: fit on all rows. [default: split, if there is one]",
)
@click.option(
    "--test-share",
    type=click.FloatRange(0, 0.5),
    default=0.0,
    metavar="SHARE",
    help="Hold out this share of the photographs as a test, e.g. 0.2. [default: none]",
)
@click.option(
    "--backbone",
    "names",
    multiple=True,
    metavar="auto|NAME",
    help="Also try the frozen features of this model of timm, and keep the best. Repeatable. auto: a short list.",
)
@click.option(
    "--weights",
    type=FETCHED,
    metavar="FILE",
    help="With one --backbone: its weights, in place of the hub's.",
)
@click.option("--accept-license", is_flag=True, help="Use a backbone whose license restricts the model made from it.")
@click.option(
    "--features",
    type=LOCAL,
    metavar="DIR",
    help="Folder that keeps the features. [default: OUTPUT.features]",
)
@click.option(
    "--imply-parents", is_flag=True, help="Label varieties with their species and group too: agate is quartz."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the folds.")
@click.option("--force", is_flag=True, help="Write the model even if it is worse than the old one.")
def adapt(source: Path | str, output: Path, base: Path | None, **chosen: Any) -> None:
    """Fit a model to the labeled photographs in SOURCE, starting from the model that comes with the package.

    SOURCE is a CSV with columns path and labels, or its URL, or a folder with one folder of photographs per label
    (`none` for photographs that show none of them). Labels may be any names. The backbone stays as it is and a new last
    layer is fitted, so that 500 photographs take about a minute on two CPU cores.

    Before it writes the new model, it compares it with the old one for each label: on the test photographs if SOURCE
    has a column split or with --test-share, else by 5-fold cross-validation. Photographs of one specimen and
    near-duplicates stay together. A run that was stopped continues where it stopped.
    """
    start = time.monotonic()
    base = base or starter_path()
    if is_url(source):  # its photographs are on this machine
        chosen["root"] = chosen["root"] or table_folder(source)
    source = fetch(source)
    features = chosen["features"] or output.with_name(f"{output.name}.features")
    _require_usable(output, features)
    known = read_contract(base).labels
    table = _table(source, chosen)
    chosen["group_column"] = _group_column(source, table, chosen["group_column"])
    photos = _read(source, known, table, chosen)
    for line in _about(photos, known, has_own_set=chosen["labels"] is not None):
        click.echo(line)
    try:
        result = _adapted(base, output, photos, features, source, chosen)
    except KeyboardInterrupt:
        click.echo(f"\nStopped; the same command goes on with the features kept in {features}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    click.echo(f"Wrote {output} ({output.stat().st_size / 1e6:.1f} MB) after {time.monotonic() - start:.0f} s")
    click.echo(f"Next: mineral-batch predict PHOTOS -m {output} -o results")
    click.echo("Then: mineral-batch evaluate results LABELS.csv   (best with photographs that are new to the model)")
    if result.failures:
        for line in _left_out(result.failures):
            click.echo(line, err=True)
        click.get_current_context().exit(EXIT_SOME_IMAGES_FAILED)


def _adapted(
    base: Path,
    output: Path,
    photos: LabeledPhotos,
    features: Path,
    source: Path,
    chosen: dict[str, Any],
) -> adapting.Result:
    """Fit, compare and write the model, unless it is worse than the old one."""
    candidates = _candidates(base, photos, features, source, chosen)
    best = min(candidates, key=lambda c: c.adapted.log_loss)
    result = adapting.finish(best, candidates[0], photos, name=output.stem, source=source.name)
    for line in [*_features_table(candidates, best), *_judgment(result)]:
        click.echo(line)
    if result.comparison.is_worse and not chosen["force"]:
        raise MineralError(f"{output} was not written: the old model is better on these photographs; --force writes it")
    adapting.write(result, output)
    return result


def _require_usable(output: Path, features: Path) -> None:
    require_packages("adapt", "adapt", "onnx", "scipy", "threadpoolctl")
    if not output.absolute().parent.is_dir():
        raise DataError(f"cannot write {output}: no folder {output.absolute().parent}; create it first")
    if output.is_dir():
        raise DataError(f"cannot write {output}: it is a folder; name a file, such as {output / 'mine.onnx'}")
    require_model_or_nothing(output)
    if features.exists() and not features.is_dir():
        raise DataError(f"--features {features} is a file; name a folder, or delete the file")


def _left_out(failures: Sequence[Failure]) -> Iterator[str]:
    """Lines about the photographs that are not there, and those that are damaged."""
    absent = [failure for failure in failures if not Path(failure.path).exists()]
    damaged = [failure for failure in failures if failure not in absent]
    if absent:
        yield f"{counted(len(absent), 'photograph')} could not be found and left out; the first: {absent[0].path}"
    if damaged:
        first = damaged[0]
        yield (
            f"{counted(len(damaged), 'photograph')} could not be read and left out; the first: {first.path}: "
            f"{first.reason}"
        )


def _table(source: Path, chosen: dict[str, Any]) -> TableFormat:
    """The columns of a CSV; says which are used that were not named."""
    table = TableFormat(chosen["path_column"], chosen["labels_column"], chosen["separator"], None, chosen["root"])
    split = chosen["split_column"]
    if split is None:
        split, other = split_column(source, table)
        if other:
            click.echo(f"The column split is not used: {other!r} is none of {', '.join(SPLITS)}")
    if root := found_root(source, table):
        click.echo(f"Relative paths start in {root}; they lead nowhere from {source.parent} (--root names another)")
        table = replace(table, root=root)
    return replace(table, split_column=None if split == _NONE else split)


def _group_column(source: Path, table: TableFormat, named: str | None) -> str | None:
    """The column of specimens; says so if it is used without being named."""
    if named is not None:
        return None if named == _NONE else named
    found = specimen_column(source, table)
    if found:
        click.echo("Photographs of one specimen stay together (column specimen; --group-column none turns this off)")
    return found


def _read(source: Path, known: tuple[str, ...], table: TableFormat, chosen: dict[str, Any]) -> LabeledPhotos:
    labels = read_labels(chosen["labels"]) if chosen["labels"] else None
    photos = read_photos(source, known, labels, table)
    if not chosen["imply_parents"]:
        return photos
    return replace(photos, rows=tuple(with_parents(row, photos.labels) for row in photos.rows))


def _candidates(
    base: Path, photos: LabeledPhotos, features: Path, source: Path, chosen: dict[str, Any]
) -> list[adapting.Candidate]:
    """The old model first, then each backbone."""
    tried = _backbones(chosen)
    files = [base, *(_made(backbone, features, photos) for backbone in tried)]
    found = []
    for file in files:
        if tried:
            click.echo(f"Features of {read_contract(file).name}")
        candidate = adapting.fit_candidate(
            file,
            photos,
            features,
            source=source.name,
            group_column=chosen["group_column"],
            test_share=chosen["test_share"],
            seed=chosen["seed"],
            progress=_progress,
            say=click.echo,
        )
        found.append(candidate)
    return found


def _backbones(chosen: dict[str, Any]) -> list[backbones.Backbone]:
    names, weights = list(chosen["names"]), chosen["weights"]
    if weights and (len(names) != 1 or names == [_AUTO]):
        raise click.UsageError("--weights belongs to one --backbone NAME")
    if not names:
        return []
    backbones.require_packages()
    if weights and not weights.is_file():
        raise DataError(f"no such weights file: {weights}")
    tried = [backbones.Backbone(name, weights) for name in names if name != _AUTO]
    for backbone in tried:
        warning = backbones.license_warning(backbone)
        backbones.require_license(backbone, accepted=chosen["accept_license"])
        if warning:
            click.echo(f"License of {warning}", err=True)
    if _AUTO in names:
        tried += backbones.reachable(backbones.SHORT_LIST, lambda line: click.echo(line, err=True))
    return tried


def _made(backbone: backbones.Backbone, folder: Path, photos: LabeledPhotos) -> Path:
    click.echo(f"Loading {backbone.name} ({backbone.license or 'license unknown'})")
    return backbones.make_base(backbone, folder, [row.path for row in photos.rows[:4]])


def _about(photos: LabeledPhotos, known: tuple[str, ...], *, has_own_set: bool) -> Iterator[str]:
    kept = old_labels(photos.labels, known)
    own = [label for label in photos.labels if label not in kept]
    test = sum(row.split == "test" for row in photos.rows)
    yield (
        f"{counted(len(photos.rows), 'photograph')}, {counted(len(photos.labels), 'label')}"
        + (f", {len(own)} of them new to the model: {', '.join(own[:5])}" if own else "")
        + (" and more" if len(own) > 5 else "")
        + (f"; {test:,} are held out as a test" if test else "")
    )
    yield from reading(photos.labels, photos.rows)
    if photos.renamed:
        keep = "" if has_own_set else " (--labels FILE keeps your names)"
        yield "Read as: " + ", ".join(f"{name} = {label}" for name, label in photos.renamed.items()) + keep
    if renamed := {label: old for label, old in kept.items() if label != old}:
        yield "Known to the old model under another name: " + ", ".join(
            f"{one} = {old}" for one, old in renamed.items()
        )
    fitted = [row for row in photos.rows if row.split != "test"]
    counts = {label: sum(label in row.labels for row in fitted) for label in photos.labels}
    rare = [label for label, count in counts.items() if count < compare.FEW]
    if rare:
        more = f" and {len(rare) - 5} more" if len(rare) > 5 else ""
        yield f"Fewer than {compare.FEW} photographs, too few to learn much: {', '.join(rare[:5])}{more}"
    lost = [label for label in known if label not in kept.values()]
    if lost and len(lost) < len(known):
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        yield (
            f"The new model will not know {counted(len(lost), 'label')} of the old one that no photograph shows: "
            f"{', '.join(lost[:5])}{more}; name them in --labels to keep them as they are"
        )
    if photos.absent:
        yield (
            f"{counted(len(photos.absent), 'photograph')} could not be found and will be left out; the first: "
            f"{photos.absent[0]}"
        )
    if photos.merged:
        yield f"{photos.merged:,} rows are the same photograph as another and were merged"
    if photos.contradictions:
        yield f"Warning: {photos.contradictions:,} photographs are listed with different labels; they get all of them"


def _features_table(candidates: list[adapting.Candidate], best: adapting.Candidate) -> Iterator[str]:
    """Which features are best for these photographs, if there is a choice."""
    if len(candidates) == 1:
        return
    yield f"{'features':<52}{'log loss':>9}{'mean AP':>9}{'MB':>7}   (cross-validated; the lowest log loss is used)"
    for candidate in candidates:
        head = candidate.base
        used = "   used" if candidate is best else ""
        size = head.path.stat().st_size / 1e6
        yield (
            f"{head.contract.name[:51]:<52}{candidate.adapted.log_loss:>9.4f}{candidate.mean_ap:>9.3f}{size:>7.0f}{used}"
        )
    yield f"License of the model: {best.base.contract.license or 'not stated'}"


def _judgment(result: adapting.Result) -> Iterator[str]:
    if result.left_out:
        yield (
            f"{counted(result.left_out, 'photograph')} not fitted on, because a test photograph shows the same "
            "specimen or is nearly the same"
        )
    figures = result.comparison
    yield f"On {figures.title}:"
    yield from compare.table(figures.rows, figures.mean)
    mean = figures.mean
    if mean is None:
        yield "The old model knows none of these labels, so there is nothing to compare with"
    elif mean.verdict == "better":
        yield "The new model is better than the old one on the labels that both know"
    elif mean.verdict == "worse":
        yield "The new model is WORSE than the old one on the labels that both know"
    else:
        yield "No clear difference between the new model and the old one on the labels that both know"
    yield (
        "These figures are valid only if the old model was not trained on these photographs (its file does not say); "
        "if it was, test on new ones"
    )
    yield (
        f"Probabilities: expected calibration error {figures.scores.ece:.4f}, log loss {figures.scores.log_loss:.4f}"
        + (" (cross-validated)" if result.test is None else "")
    )


def _progress(places: Iterable[int], total: int) -> Iterator[int]:
    """Show a bar, and without a terminal a line now and then."""
    start = last = time.monotonic()
    bar = tqdm(places, total=total, desc="features", unit=" photographs", disable=None)
    for done, place in enumerate(bar, start=1):
        yield place
        now = time.monotonic()
        if bar.disable and now - last > _LINE_EVERY:
            last = now
            left = (now - start) / done * (total - done)
            click.echo(f"Features: {done:,} of {total:,} photographs, about {_in_words(left)} left", err=True)


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
