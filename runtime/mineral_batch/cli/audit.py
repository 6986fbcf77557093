"""`mineral-batch audit`: existing labels that look wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.edited import say_edited
from mineral_batch.cli.paths import LOCAL, refuse_swapped
from mineral_batch.cli.shared_options import JUDGED, labels_options, specimen_option
from mineral_batch.errors import DataError
from mineral_batch.evaluation.audit import LIKELY, NONE, PROBABLE, look_wrong, suspects
from mineral_batch.evaluation.evaluate import join
from mineral_batch.evaluation.specimens import by_specimen, thresholds_of_run
from mineral_batch.results.csv import shown, write_csv
from mineral_batch.results.read import table_in
from mineral_batch.results.schema import SEPARATOR, format_number
from mineral_batch.results.written import note_written, require_not_read, require_replaceable
from mineral_batch.words import counted

if TYPE_CHECKING:
    from mineral_batch.evaluation.audit import Suspect
    from mineral_batch.evaluation.evaluate import Joined

_SHOWN = 10
COLUMNS = ("path", "labels", "suspect", "suggested", "odds_ratio", "probability", "suggested_probability", "alike")


@click.command()
@click.argument("labels", type=LOCAL)
@click.argument("results", type=LOCAL)
@labels_options
@specimen_option(JUDGED)
@click.option("--features", is_flag=True, help="Find similar images by the model's features instead of by its answers.")
@click.option("--photos", type=LOCAL, metavar="DIR", help="With --features: where relative paths start.")
@click.option("-m", "--model", type=LOCAL, help="With --features: the model. [default: that of the run]")
@click.option("-o", "--output", type=LOCAL, help="Table to write. [default: audit.csv in RESULTS]")
@click.option(
    "--count",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Write at most this many labels, worst first.",
)
def audit(
    labels: Path,
    results: Path,
    split: str | None,
    ignore_unknown: bool,
    specimen: str | None,
    features: bool,
    photos: Path | None,
    model: Path | None,
    output: Path | None,
    count: int,
) -> None:
    """Find existing labels that look wrong because the model considers another mineral much more likely.

    LABELS is a CSV (path,labels) or a labeling tool's file. RESULTS is the output folder of predict on the same images,
    by a model that was not trained on these labels. The table lists the worst first, with the mineral that the model
    suggests and similar images of that mineral. `mineral-batch review RESULTS --labels LABELS` shows them in this
    order.
    """
    if features and specimen is not None:
        raise click.UsageError("--features compares photographs: leave --specimen out")
    if (photos or model) and not features:
        raise click.UsageError("--photos and --model are for --features")
    refuse_swapped("audit", labels, results)
    table = table_in(results) if results.is_dir() else results
    target = output or table.parent / "audit.csv"
    require_not_read(target, (labels, table), "audit")
    require_replaceable(table.parent, target, "audit")
    say_edited(table, "the edited table is compared with the labels")
    joined = join(table, labels, split, keep_unlabeled=specimen is not None, ignore_unknown=ignore_unknown)
    if specimen is not None:
        joined = by_specimen(joined, specimen, thresholds_of_run(table))
    noun = "specimen" if specimen is not None else "image"
    predictions = joined.predictions
    found = list(suspects(predictions.scores, joined.truth, predictions.labels, count, others=joined.others))
    if features:
        found = _by_features(joined, found, table.parent, photos, model)
    columns = (COLUMNS[0] if specimen is None else "specimen", *COLUMNS[1:])
    write_csv(target, columns, (_row(joined, suspect) for suspect in found))
    note_written(table.parent, target)
    click.echo("\n".join([*_lines(joined, found, noun), *(f"{note}." for note in joined.notes), f"Table: {target}"]))


def _by_features(
    joined: Joined, found: list[Suspect], folder: Path, photos: Path | None, model: Path | None
) -> list[Suspect]:
    from tqdm import tqdm

    from mineral_batch.report.thumbnails import find_base
    from mineral_batch.results.read import read_results
    from mineral_batch.review import alike
    from mineral_batch.review.features import FeatureExtractor, FeatureStore, model_of
    from mineral_batch.review.reading import Reader

    base = photos or find_base(joined.predictions.paths, [Path(), folder, folder.parent])
    file = model or model_of(read_results(folder), base)
    if file is None:
        raise DataError("the model of this run is not here as it was: name it with --model, or leave --features out")
    paths = [joined.predictions.paths[row] for row in alike.needed(joined, found)]
    store = FeatureStore(folder, FeatureExtractor(file))
    try:
        with tqdm(total=len(paths), unit=" images", desc="features", disable=None, leave=False) as bar:
            alike.compute(paths, store, Reader(base), bar.update)
        return list(alike.by_features(joined, found, store))
    finally:
        store.close()


def _row(joined: Joined, suspect: Suspect) -> tuple[str, ...]:
    table, truth, others = joined.predictions, joined.truth[suspect.row], joined.others[suspect.row]
    values = dict(zip(table.labels, table.scores[suspect.row].tolist(), strict=True))
    return (
        table.paths[suspect.row],
        SEPARATOR.join((*(name for name, is_given in zip(table.labels, truth, strict=True) if is_given), *others)),
        suspect.given,
        suspect.suggested,
        f"{suspect.odds_ratio:.3g}",
        format_number(values[suspect.given]) if suspect.given in values else "",
        format_number(values[suspect.suggested]),
        SEPARATOR.join(table.paths[row] for row in suspect.alike),
    )


def _times(ratio: float) -> str:
    """`1.3`, `47`, `398,000`, `over a million`: a ratio for people."""
    if ratio >= 1e6:
        return "> 1 million"
    return f"{ratio:.2g}" if ratio < 10 else f"{float(f'{ratio:.3g}'):,.0f}"


def _lines(joined: Joined, found: list[Suspect], noun: str) -> list[str]:
    likely = [suspect for suspect in found if suspect.looks_wrong]
    wrong = int(look_wrong(joined.predictions.scores, joined.truth).sum())  # also those left out
    lines = [
        f"{counted(len(joined.truth), f'labeled {noun}')}; {counted(wrong, 'label looks', 'labels look')} wrong "
        f"(another is at least {PROBABLE:.0%} probable, and its odds are {LIKELY:g} times as high or more)"
    ]
    lines += [_line(joined, suspect) for suspect in likely[:_SHOWN]]
    if more := len(likely) - _SHOWN:
        lines += [f"  and {more:,} more"] * (more > 0)
    if doubtful := len(found) - len(likely):
        lines.append(f"Less certain, in the table only: {doubtful:,}")
    pairs = Counter((suspect.given, suspect.suggested) for suspect in likely).most_common(5)
    frequent = [f"{given} -> {suggested} ({n})" for (given, suggested), n in pairs if n > 1]
    return [*lines, f"Most frequent: {', '.join(frequent)}"] if frequent else lines


def _line(joined: Joined, suspect: Suspect) -> str:
    """`opal 1%  quartz? 46%  70 x  photo.jpg`; a label that the model does not have has no probability."""
    is_known = suspect.given in (NONE, *joined.predictions.labels)
    given = f"{suspect.given:<15} {_percent(suspect.probability) if is_known else '-':>6}"
    suggested = f"{suspect.suggested + '?':<15} {_percent(suspect.suggested_probability):>6}"
    return f"  {given}  {suggested}  {_times(suspect.odds_ratio):>11} x  {shown(joined.predictions.paths[suspect.row])}"


def _percent(value: float) -> str:
    """`<1%`, `46%`, `>99%`."""
    return "<1%" if value < 0.005 else ">99%" if value > 0.995 else f"{100 * value:.0f}%"
