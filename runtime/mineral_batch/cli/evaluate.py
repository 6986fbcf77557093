"""`mineral-batch evaluate`: the accuracy of a table of predictions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mineral_batch.cli.edited import say_edited
from mineral_batch.cli.evaluation_record import evaluation_record, six_digits
from mineral_batch.cli.evaluation_text import (
    CSV_COLUMNS,
    Comparison,
    evaluation_lines,
    label_rows,
    too_few,
    tuning_lines,
)
from mineral_batch.cli.paths import FETCHED, LOCAL, LOCAL_TEXT, refuse_swapped
from mineral_batch.cli.shared_options import JUDGED, labels_options, specimen_option
from mineral_batch.errors import ContractError, DataError, OptionError
from mineral_batch.evaluation.evaluate import Evaluation, Joined, Tuning, join
from mineral_batch.evaluation.evaluate import evaluate as judge
from mineral_batch.evaluation.evaluate import tune as tune_model
from mineral_batch.evaluation.levels import at_level
from mineral_batch.evaluation.metrics import EQUATION_6
from mineral_batch.evaluation.specimens import by_specimen, thresholds_of_run
from mineral_batch.evaluation.thresholds import CONFIDENCE, Rule
from mineral_batch.files import write_file
from mineral_batch.minerals.table import LEVELS, Level, load_table
from mineral_batch.model.calibration import calibrate_command
from mineral_batch.model.contract import Measured
from mineral_batch.model.onnx_file import read_contract, require_model_or_nothing, write_contract
from mineral_batch.model.starter import starter_path
from mineral_batch.results.csv import write_csv
from mineral_batch.results.read import table_in
from mineral_batch.results.seals import require_sealed, sealed_json
from mineral_batch.results.written import note_written, require_not_read, require_replaceable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.model.contract import ModelContract


def _table(_context: click.Context, _argument: click.Parameter, path: Path) -> Path:
    """The table, also where its folder was named."""
    return table_in(path) if path.is_dir() else path


@click.command()
@click.argument("predictions", callback=_table, type=FETCHED)
@click.argument("labels", type=FETCHED)
@labels_options
@click.option(
    "--thresholds",
    type=LOCAL_TEXT,
    metavar="NUMBER|MODEL",
    help="Apply one threshold (0.5), or those of an ONNX file. [default: what the column `minerals` says]",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[0],
    show_default=True,
    help="Judge at this level: agate counts as quartz at species, as an oxide at class.",
)
@specimen_option(JUDGED)
@click.option(
    "--minerals", type=FETCHED, metavar="CSV", help="With --level: your own table of minerals (name,species,...)."
)
@click.option("--tune", metavar="RULE", help="Choose new thresholds for the model: f1, precision=0.9 or recall=0.9.")
@click.option("--model", type=LOCAL, help="With --tune: the ONNX file that predicted. [default: the starter model]")
@click.option(
    "-o",
    "--output",
    type=LOCAL,
    help="With --tune: file for the model with its new thresholds. [default: in place of the model]",
)
@click.option("--force", is_flag=True, help="With --tune: write thresholds even if no mineral gets the guarantee.")
@click.option(
    "--record", type=LOCAL, metavar="MODEL", help="Write the mAP and the AP of each mineral into this ONNX file."
)
@click.option(
    "--dataset", metavar="TEXT", help="With --record: a description of the images. [default: the name of LABELS]"
)
@click.option(
    "--bootstrap",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="Resamples for the 95% interval of the mAP; 0: no interval.",
)
@click.option("--json", "json_file", type=LOCAL, metavar="FILE", help="Write every figure to this file.")
@click.option("--csv", "csv_file", type=LOCAL, metavar="FILE", help="Write the table of the minerals to this file.")
def evaluate(
    predictions: Path,
    labels: Path,
    split: str | None,
    ignore_unknown: bool,
    thresholds: str | None,
    level: Level,
    specimen: str | None,
    minerals: Path | None,
    tune: str | None,
    model: Path | None,
    output: Path | None,
    force: bool,
    record: Path | None,
    dataset: str | None,
    bootstrap: int,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Compare PREDICTIONS with LABELS (CSV: path,labels[,split], or a labeling tool's file).

    PREDICTIONS is the output folder of `predict`, or its predictions.csv.

    Prints average precision per mineral, their mean (mAP) with a 95% interval, and precision, recall and F1. Rows
    match when one path ends with the other; images in only one of the tables are counted and left out. Labels that the
    model does not have are counted and named; an image of such a mineral shows none of the model's.

    With --tune, the model that made PREDICTIONS gets new thresholds. f1: for each mineral the threshold of the highest
    F1; minerals in fewer than 5 images share one. precision=0.9: the highest recall at a precision of 0.9. recall=0.9:
    the highest precision at a recall of 0.9. Both list the minerals that have too few images to guarantee this with
    95% confidence. Tune on validation images (--split val) and evaluate on others (--split test): a threshold looks
    too good on the images that it was chosen on.

    With --record, the figures are stored in MODEL, and `predict` and `info` show them.
    """
    refuse_swapped("evaluate", labels, predictions)
    folder = predictions if predictions.is_dir() else predictions.parent
    _require_replaceable(folder, json_file, csv_file, output, (predictions, labels, minerals))
    compared = Comparison(predictions, labels, split, bootstrap, level, specimen)
    if tune or record:
        _require_own_labels_and_images(compared)
    rule = Rule.parse(tune) if tune else None
    contract = _to_tune(rule, model, output)
    cuts = _thresholds(thresholds)
    known = contract or (None if isinstance(cuts, float) else cuts)
    say_edited(predictions, "the edited table is evaluated")
    joined = join(
        predictions,
        labels,
        split,
        known.labels if known else None,
        keep_unlabeled=specimen is not None,
        ignore_unknown=ignore_unknown,
    )
    if specimen is not None:
        joined = by_specimen(joined, specimen, thresholds_of_run(predictions))
    if level != LEVELS[0]:
        if known:
            raise click.UsageError(
                "a model's thresholds are for its own labels: give --thresholds a number with --level"
            )
        joined = at_level(joined, level, load_table(minerals))
    result = judge(joined, _for_labels(cuts, joined.predictions.labels), bootstrap)
    tuning = tune_model(joined, contract.thresholds, rule) if contract and rule else None
    click.echo("\n".join(evaluation_lines(joined, result, compared)))
    if joined.predictions.is_rounded:
        click.echo("Warning: the probabilities have three decimals or fewer; the ties move mAP.", err=True)
    if json_file:
        record_text = json.dumps(evaluation_record(joined, result, tuning, compared), indent=2, ensure_ascii=False)
        write_file(json_file, sealed_json(record_text))
        click.echo(f"Wrote {json_file}")
    if csv_file:
        write_csv(csv_file, CSV_COLUMNS, six_digits(label_rows(result)))
        note_written(folder, csv_file)
        click.echo(f"Wrote {csv_file}")
    if contract and tuning:
        _require_promise(tuning, contract, len(joined.truth), force=force)
        target = _tuned_file(model or starter_path(), output)
        write_contract(target, _tuned(contract, tuning, joined, compared))
        click.echo("\n".join(tuning_lines(tuning, contract, target, len(joined.truth), split)))
    if record:
        measured = _measured(joined, result, dataset or _in_words(compared))
        write_contract(record, replace(read_contract(record), measured=measured))
        click.echo(f"\nWrote mAP {measured.mean_ap:.4f} on {measured.images} images into {record}.")


def _require_replaceable(
    folder: Path, json_file: Path | None, csv_file: Path | None, model: Path | None, inputs: Sequence[Path | None]
) -> None:
    """Refuse to replace an input, figures that evaluate did not write, or with a model a file that is not one."""
    for target in filter(None, (json_file, csv_file, model)):
        require_not_read(target, inputs, "evaluate")
    if json_file is not None:
        require_sealed(json_file, "evaluate")
    if csv_file is not None:
        require_replaceable(folder, csv_file, "evaluate")
    if model is not None:
        require_model_or_nothing(model)


def _require_own_labels_and_images(compared: Comparison) -> None:
    """What goes into a model is about its labels and about images."""
    if compared.level != LEVELS[0]:
        raise click.UsageError("--tune and --record are about the model's own labels: leave --level out")
    if compared.specimen is not None:
        raise click.UsageError("--tune and --record are about images: leave --specimen out")


def _to_tune(rule: Rule | None, model: Path | None, output: Path | None) -> ModelContract | None:
    """The contract of the model that gets thresholds; None where there is nothing to tune."""
    if rule is None:
        if model or output:
            raise click.UsageError("--model and --output need --tune f1, precision=0.9 or recall=0.9")
        return None
    if model is None and output is None:
        raise click.UsageError(f"--tune {rule} needs --model FILE, or -o FILE for a copy of the starter model")
    model = model or starter_path()
    contract = read_contract(model)
    if rule.goal != "f1" and not contract.is_calibrated:
        raise ContractError(
            f"{model} is not calibrated, and thresholds by {rule} need probabilities that mean what they say: "
            f"{calibrate_command(model)}"
        )
    return contract


def _require_promise(tuning: Tuning, contract: ModelContract, images: int, *, force: bool) -> None:
    """Refuse thresholds that rest on no evidence of these images, unless they are forced."""
    if tuning.bound is None or force or len(tuning.without_promise(contract.labels)) < len(contract.labels):
        return
    raise DataError(
        f"{too_few(tuning.rule, images)}, so no thresholds were written: label more images, or use --force to rely on "
        "the calibration alone"
    )


def _tuned_file(model: Path, output: Path | None) -> Path:
    """The file that gets the thresholds: the model itself, or its copy."""
    if output is None:
        return model
    write_file(output, model.read_bytes())
    return output


def _in_words(compared: Comparison) -> str:
    return f"split {compared.split} of {compared.labels.name}" if compared.split else compared.labels.name


def _measured(joined: Joined, result: Evaluation, dataset: str) -> Measured:
    """What a contract carries of an evaluation: the figures by equation 6."""
    if math.isnan(result.mean_ap.mean):
        raise DataError("nothing to record: none of these images has a label")
    low, high = result.interval or (None, None)
    ap, low, high = (six_digits(value) for value in (result.mean_ap.per_label.tolist(), low, high))
    return Measured(
        mean_ap=float(f"{result.mean_ap.mean:.6g}"),
        definition=EQUATION_6,
        dataset=dataset,
        images=len(joined.truth),
        ap=dict(zip(result.labels, ap, strict=True)),
        support=dict(zip(result.labels, result.mean_ap.support.tolist(), strict=True)),
        low=low,
        high=high,
    )


def _thresholds(text: str | None) -> ModelContract | float | None:
    """`0.5`, or the contract of the model file that is named."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return read_contract(text)
    if not 0.0 <= number <= 1.0:
        raise OptionError(f"--thresholds {text}: a threshold is a probability, 0 to 1, or the name of an ONNX file")
    return number


def _for_labels(cuts: ModelContract | float | None, labels: Sequence[str]) -> list[float] | None:
    """Thresholds in the order of the labels."""
    if cuts is None or isinstance(cuts, float):
        return cuts if cuts is None else [cuts] * len(labels)
    by_name = dict(zip(cuts.labels, cuts.thresholds, strict=True))
    absent = [name for name in labels if name not in by_name]
    if absent:
        raise DataError(f"the model of --thresholds does not know {', '.join(absent)}: is it the one that predicted?")
    return [by_name[name] for name in labels]


def _tuned(contract: ModelContract, tuning: Tuning, joined: Joined, compared: Comparison) -> ModelContract:
    """The contract with the new thresholds and where they come from."""
    origin: dict[str, Any] = {
        "rule": str(tuning.rule),
        "labels": compared.labels.name,
        "split": compared.split,
        "images": len(joined.truth),
    }
    if tuning.bound is not None:
        origin |= {"confidence": CONFIDENCE, "without_promise": tuning.without_promise(contract.labels)}
    return replace(
        contract.with_thresholds(tuning.thresholds), provenance={**contract.provenance, "thresholds": origin}
    )
