"""`mineral-batch evaluate`: the accuracy of a table of predictions."""

from __future__ import annotations

import json
import math
import textwrap
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from mineral_batch.cli.paths import MODEL
from mineral_batch.errors import ContractError, DataError
from mineral_batch.evaluation.calibration import ECE_DEFINITION
from mineral_batch.evaluation.evaluate import Evaluation, Joined, Tuning, join
from mineral_batch.evaluation.evaluate import evaluate as judge
from mineral_batch.evaluation.evaluate import tune as tune_model
from mineral_batch.evaluation.levels import at_level, varieties_beside_their_species
from mineral_batch.evaluation.metrics import DEFINITIONS, EQUATION_6, PrecisionRecallF1
from mineral_batch.evaluation.specimens import by_specimen, thresholds_of_run
from mineral_batch.evaluation.thresholds import CONFIDENCE, Rule
from mineral_batch.files import write_file
from mineral_batch.minerals.table import LEVELS, Level
from mineral_batch.model.calibration import calibrate_command
from mineral_batch.model.contract import Measured
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_batch.model.starter import starter_path
from mineral_batch.results.csv import write_csv
from mineral_batch.results.read import table_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.evaluation.calibration import CalibrationFigures
    from mineral_batch.model.contract import ModelContract


@dataclass(frozen=True)
class _Comparison:
    """The tables that were compared, for the head of the text."""

    predictions: Path
    labels: Path
    split: str | None
    resamples: int
    level: Level
    specimen: str | None


_FILE = click.Path(path_type=Path)
_SHOWN = 5


def _table(_context: click.Context, _argument: click.Parameter, path: Path) -> Path:
    """The table, also where its folder was named."""
    return table_in(path) if path.is_dir() else path


@click.command()
@click.argument("predictions", callback=_table, type=MODEL)
@click.argument("labels", type=MODEL)
@click.option("--split", help="Use only the rows of LABELS with this value in the column `split`.")
@click.option(
    "--thresholds",
    metavar="NUMBER|MODEL",
    help="Apply one threshold (0.5) or those of an ONNX file; default: take the column `minerals`.",
)
@click.option(
    "--level",
    type=click.Choice(LEVELS),
    default=LEVELS[0],
    show_default=True,
    help="Judge at this level: agate counts as quartz at species, as an oxide at class.",
)
@click.option(
    "--specimen",
    metavar="RULE",
    help="Judge specimens instead of images; RULE as in `predict --specimen`: folder, catalogue, regex=PATTERN, a CSV.",
)
@click.option("--tune", metavar="RULE", help="Choose thresholds by f1, precision=0.9 or recall=0.9.")
@click.option("--model", type=_FILE, help="With --tune: the ONNX file that predicted; default: the starter model.")
@click.option(
    "-o", "--output", type=_FILE, help="With --tune: write the model with its new thresholds here; default: in place."
)
@click.option("--force", is_flag=True, help="With --tune: write thresholds even if no mineral gets the guarantee.")
@click.option("--record", type=_FILE, metavar="MODEL", help="Write the mAP and the AP per mineral into MODEL.")
@click.option("--dataset", help="With --record: a description of the images; default: the name of LABELS.")
@click.option(
    "--bootstrap",
    default=1000,
    show_default=True,
    type=click.IntRange(0),
    help="Bootstrap resamples for the 95 % interval; 0: none.",
)
@click.option("--json", "json_file", type=_FILE, help="Write every figure as JSON.")
@click.option("--csv", "csv_file", type=_FILE, help="Write the table per mineral as CSV.")
def evaluate(
    predictions: Path,
    labels: Path,
    split: str | None,
    thresholds: str | None,
    level: Level,
    specimen: str | None,
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
    """Compare PREDICTIONS with LABELS (CSV: path,labels[,split]).

    PREDICTIONS is the output folder of `predict`, or its predictions.csv.

    Prints average precision per mineral, their mean (mAP) with a 95 % interval, and precision, recall and F1. Rows
    match when one path ends with the other; images in only one of the tables are counted and left out.

    With --tune, the model that made PREDICTIONS gets new thresholds. f1: for each mineral the threshold of the highest
    F1; minerals in fewer than 5 images share one. precision=0.9: the highest recall at a precision of 0.9.
    recall=0.9: the highest precision at a recall of 0.9. Both list the minerals for which these images are too few to
    promise that with 95 % confidence. Tune on validation images (--split val) and evaluate on others (--split test):
    a threshold looks better than it is on the images that it was chosen on.

    With --record, the figures are stored in MODEL, and `predict` and `info` show them.
    """
    compared = _Comparison(predictions, labels, split, bootstrap, level, specimen)
    if tune or record:
        _require_own_labels_and_images(compared)
    rule = Rule.parse(tune) if tune else None
    contract = _to_tune(rule, model, output)
    cuts = _thresholds(thresholds)
    known = contract or (None if isinstance(cuts, float) else cuts)
    joined = join(predictions, labels, split, known.labels if known else None)
    if specimen is not None:
        joined = by_specimen(joined, specimen, thresholds_of_run(predictions))
    if level != LEVELS[0]:
        if known:
            raise click.UsageError(
                "a model's thresholds are for its own labels: give --thresholds a number with --level"
            )
        joined = at_level(joined, level)
    result = judge(joined, _for_labels(cuts, joined.predictions.labels), bootstrap)
    tuning = tune_model(joined, contract.thresholds, rule) if contract and rule else None
    click.echo("\n".join(_text(joined, result, compared)))
    if joined.predictions.is_rounded:
        click.echo("Warning: the probabilities have three decimals or fewer; the ties move mAP.", err=True)
    if json_file:
        record_text = json.dumps(_record(joined, result, tuning, compared), indent=2, ensure_ascii=False)
        write_file(json_file, f"{record_text}\n")
    if csv_file:
        write_csv(csv_file, _CSV_COLUMNS, _six_digits(_rows(result)))
    if contract and tuning:
        _require_promise(tuning, contract, len(joined.truth), force=force)
        target = _tuned_file(model or starter_path(), output)
        write_contract(target, _tuned(contract, tuning, joined, compared))
        click.echo("\n".join(_tuning_text(tuning, contract, target, split)))
    if record:
        measured = _measured(joined, result, dataset or _in_words(compared))
        write_contract(record, replace(read_contract(record), measured=measured))
        click.echo(f"\nWrote mAP {measured.mean_ap:.4f} on {measured.images} images into {record}.")


def _require_own_labels_and_images(compared: _Comparison) -> None:
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
        f"these {images} images guarantee {tuning.rule.goal} {tuning.rule.value:g} for no mineral; the thresholds were "
        "not changed: label more images, or use --force to rely on the calibration alone"
    )


def _tuned_file(model: Path, output: Path | None) -> Path:
    """The file that gets the thresholds: the model itself, or its copy."""
    if output is None:
        return model
    write_file(output, model.read_bytes())
    return output


def _in_words(compared: _Comparison) -> str:
    return f"split {compared.split} of {compared.labels.name}" if compared.split else compared.labels.name


def _measured(joined: Joined, result: Evaluation, dataset: str) -> Measured:
    """What a contract carries of an evaluation: the figures by equation 6."""
    if math.isnan(result.mean_ap.mean):
        raise DataError("nothing to record: none of these images has a label")
    low, high = result.interval or (None, None)
    ap, low, high = (_six_digits(value) for value in (result.mean_ap.per_label.tolist(), low, high))
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
        raise DataError(f"--thresholds {text}: a threshold is a probability, 0 to 1, or the name of an ONNX file")
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


def _text(joined: Joined, result: Evaluation, compared: _Comparison) -> list[str]:
    return [
        *_join_text(joined, compared),
        "",
        *_label_lines(result),
        "",
        *_mean_ap_lines(result, compared.resamples),
        "",
        *_calibration_lines(result.calibration),
        "",
        *_decision_lines(result),
        *_empty_lines(result),
    ]


def _join_text(joined: Joined, compared: _Comparison) -> list[str]:
    of_split = f", split {compared.split}" if compared.split else ""
    lines = [f"{len(joined.truth)} images are in both {compared.predictions} and {compared.labels}{of_split}."]
    if joined.unlabelled:
        lines.append(f"{joined.unlabelled} predictions have no labels and are ignored.")
    if joined.other_splits:
        lines.append(f"{joined.other_splits} predictions belong to other splits and are ignored.")
    if joined.missing:
        first = ", ".join(path.encode("utf-8", "replace").decode() for path in joined.missing[:_SHOWN])
        more = f" and {len(joined.missing) - _SHOWN} more" if len(joined.missing) > _SHOWN else ""
        lines.append(f"{len(joined.missing)} labelled images have no prediction: {first}{more}.")
    if joined.renamed:
        lines.append("Read as: " + ", ".join(f"{name} = {label}" for name, label in joined.renamed.items()) + ".")
    lines += [f"{note}." for note in joined.notes]
    lines += _reading(joined, compared.level)
    if joined.predictions.ignored:
        lines.append(f"Columns that are no labels, ignored: {', '.join(joined.predictions.ignored)}.")
    if compared.split is None and joined.splits:
        lines.append(
            f"Note: all splits of {compared.labels} are judged together ({', '.join(joined.splits)}); if the model was "
            "trained on one of them, the figures are too good: choose one with --split"
        )
    return lines


def _reading(joined: Joined, level: Level) -> list[str]:
    """How varieties beside their species are counted."""
    if level != LEVELS[0]:
        return [f"Labels are read at the level of {level}: {len(joined.predictions.labels)} names."]
    pairs = varieties_beside_their_species(joined.predictions.labels)
    if not pairs:
        return []
    named = ", ".join(f"{variety} alone is not {species}" for variety, species in pairs)
    return [f"Labels are taken as written: {named} (--level species counts a variety as its species)."]


_CSV_COLUMNS = ("mineral", f"ap ({EQUATION_6})", "support", "called", "precision", "recall", "f1", "threshold")
_COLUMNS = ("mineral", "AP", "photographs", "called", "precision", "recall", "F1", "threshold")


def _rows(result: Evaluation) -> list[tuple[str, float, int, int, float, float, float, float]]:
    """The table per mineral, `_COLUMNS`; NaN for a ratio 0 / 0 and for a threshold that is not known."""
    found = result.decisions
    thresholds = result.thresholds or [math.nan] * len(result.labels)
    figures = (
        result.mean_ap.per_label,
        found.support,
        found.called,
        np.where(found.called > 0, found.precision, np.nan),
        np.where(found.support > 0, found.recall, np.nan),
        np.where(found.called + found.support > 0, found.f1, np.nan),
    )
    return list(zip(result.labels, *(figure.tolist() for figure in figures), thresholds, strict=True))


def _label_lines(result: Evaluation) -> list[str]:
    width = max(len("mineral"), *(len(name) for name in result.labels))
    columns = _COLUMNS if result.thresholds else _COLUMNS[:-1]
    lines = ["  ".join([f"{columns[0]:<{width}}", *(f"{name:>{max(len(name), 6)}}" for name in columns[1:])])]
    for row in _rows(result):
        cells = [f"{_cell(v):>{max(len(name), 6)}}" for name, v in zip(columns[1:], row[1:], strict=False)]
        lines.append("  ".join([f"{row[0]:<{width}}", *cells]))
    return lines


def _cell(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return "-" if math.isnan(value) else f"{value:.4f}"


def _mean_ap_lines(result: Evaluation, resamples: int) -> list[str]:
    lines = []
    for name, figure in result.ap.items():
        interval = ""
        if name == EQUATION_6 and result.interval:
            low, high = (_cell(value) for value in result.interval)
            interval = f", 95 % interval {low} to {high} ({resamples} bootstrap resamples of the images)"
        lines.append(f"mAP {_cell(figure.mean)}  {name}{interval}")
        lines += textwrap.wrap(DEFINITIONS[name], 100, initial_indent=" " * 12, subsequent_indent=" " * 12)
    return lines


def _calibration_lines(figures: CalibrationFigures) -> list[str]:
    rows = [
        f"{name:<9}{one:>10.4f}{base:>12.4f}"
        for name, one, base in zip(
            ("ECE", "log loss", "Brier"), astuple(figures.scores), astuple(figures.baseline), strict=True
        )
    ]
    return [
        "Calibration, compared with always predicting the prevalence in these images:",
        f"{'':<9}{'model':>10}{'prevalence':>12}",
        *rows,
        *textwrap.wrap(f"ECE: {ECE_DEFINITION}; log loss and Brier score: means over all decisions.", 100),
        f"Minerals per image: {figures.labels_predicted:.2f} by the sum of the probabilities, "
        f"{figures.labels_true:.2f} labelled.",
    ]


def _decision_lines(result: Evaluation) -> list[str]:
    found = result.decisions
    by = "the thresholds above" if result.thresholds else "the `minerals` column"
    return [
        f"Decisions by {by}:",
        "per class  CP {:.4f}  CR {:.4f}  CF1 {:.4f}".format(*found.per_class) + f"  macro-F1 {found.macro_f1:.4f}",
        "overall    OP {:.4f}  OR {:.4f}  OF1 {:.4f}".format(*found.overall),
    ]


def _empty_lines(result: Evaluation) -> list[str]:
    empty = [result.labels[index] for index in result.mean_ap.empty]
    if not empty:
        return []
    return [
        "",
        f"In no image, so not evaluated ({len(empty)} of {len(result.labels)}): {', '.join(empty)}.",
    ]


def _tuning_text(tuning: Tuning, contract: ModelContract, model: Path, split: str | None) -> list[str]:
    lines = ["", f"Wrote thresholds by {tuning.rule} into {model}: {_f1_changes(tuning)}."]
    for when, found in (("before", tuning.before), ("after", tuning.after)):
        means = f"macro-F1 {found.macro_f1:.4f}  CF1 {found.per_class.f1:.4f}  OF1 {found.overall.f1:.4f}"
        lines.append(f"{when:<7} {means}  OP {found.overall.precision:.4f}  OR {found.overall.recall:.4f}")
    if tuning.bound is not None:
        lines += _promise_lines(tuning, contract.labels)
    if split != "val":
        lines.append(
            "The thresholds were chosen on these images, so the figures after are optimistic; evaluate on others."
        )
    return lines


def _f1_changes(tuning: Tuning) -> str:
    """How many minerals gained and lost: `F1 rises for 3, falls for 1, is unchanged for 32 minerals`."""
    difference = tuning.after.f1 - tuning.before.f1
    counts = {"rises": (difference > 0).sum(), "falls": (difference < 0).sum(), "is unchanged": (difference == 0).sum()}
    return "F1 " + ", ".join(f"{what} for {count}" for what, count in counts.items() if count) + " minerals"


def _promise_lines(tuning: Tuning, labels: Sequence[str]) -> list[str]:
    unknown = tuning.without_promise(labels)
    promised = len(labels) - len(unknown)
    goal = f"{tuning.rule.goal} of at least {tuning.rule.value:g}"
    lines = [f"A {goal} is guaranteed with {CONFIDENCE:.0%} confidence for {promised} of {len(labels)} minerals."]
    if not promised:
        lines.append("Warning: these images guarantee it for no mineral; the thresholds rest on the calibration alone.")
    if unknown:
        text = f"Too few images for a guarantee; only the calibration supports the threshold: {', '.join(unknown)}."
        lines += textwrap.wrap(text, 100)
    return lines


def _tuned(contract: ModelContract, tuning: Tuning, joined: Joined, compared: _Comparison) -> ModelContract:
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


def _record(joined: Joined, result: Evaluation, tuning: Tuning | None, compared: _Comparison) -> dict[str, Any]:
    """Every figure, ready for JSON: six significant digits, null where a figure is not defined."""
    record = {
        "predictions": str(compared.predictions),
        "labels": str(compared.labels),
        "split": compared.split,
        "level": compared.level,
        "specimen": compared.specimen,
        "images": len(joined.truth),
        "predictions_without_labels": joined.unlabelled,
        "predictions_of_other_splits": joined.other_splits,
        "labelled_without_prediction": len(joined.missing),
        "mean_ap": {name: figure.mean for name, figure in result.ap.items()},
        "interval_95": result.interval,
        "interval_of": EQUATION_6,
        "bootstrap_resamples": compared.resamples,
        "definitions": dict(DEFINITIONS),
        "minerals": [_label_record(result, index, row) for index, row in enumerate(_rows(result))],
        "without_positives": [result.labels[index] for index in result.mean_ap.empty],
        "calibration": _calibration_record(result.calibration),
        "decisions": "thresholds" if result.thresholds else "column minerals",
        **_decision_record(result.decisions),
    }
    if tuning:
        record["tuning"] = {
            "rule": str(tuning.rule),
            "bound": None if tuning.bound is None else dict(zip(result.labels, tuning.bound, strict=True)),
            "thresholds": dict(zip(result.labels, tuning.thresholds, strict=True)),
            "before": _decision_record(tuning.before),
            "after": _decision_record(tuning.after),
        }
    rounded: dict[str, Any] = _six_digits(record)
    return rounded


def _calibration_record(figures: CalibrationFigures) -> dict[str, Any]:
    bins = figures.reliability
    return {
        "model": asdict(figures.scores),
        "always_the_prevalence": asdict(figures.baseline),
        "ece_definition": ECE_DEFINITION,
        "labels_per_image": {"predicted": figures.labels_predicted, "true": figures.labels_true},
        "bins": [
            {"decisions": count, "predicted": predicted, "observed": observed}
            for count, predicted, observed in zip(
                bins.decisions.tolist(), bins.predicted.tolist(), bins.observed.tolist(), strict=True
            )
        ],
    }


def _label_record(result: Evaluation, index: int, row: tuple[Any, ...]) -> dict[str, Any]:
    name, _, support, called, precision, recall, f1, threshold = row
    return {
        "mineral": name,
        "ap": {definition: figure.per_label[index].item() for definition, figure in result.ap.items()},
        "support": support,
        "called": called,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "threshold": threshold,
    }


def _decision_record(found: PrecisionRecallF1) -> dict[str, Any]:
    return {"per_class": found.per_class._asdict() | {"macro_f1": found.macro_f1}, "overall": found.overall._asdict()}


def _six_digits(value: Any) -> Any:
    """The same structure with floats of six significant digits and None for NaN."""
    if isinstance(value, dict):
        return {key: _six_digits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_six_digits(item) for item in value]
    if isinstance(value, float):
        return None if math.isnan(value) else float(f"{value:.6g}")
    return value
