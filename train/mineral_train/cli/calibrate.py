"""`mineral-train calibrate`: make the probabilities of a model mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.console import EXIT_SOME_IMAGES_FAILED
from mineral_batch.cli.paths import INPUT, LOCAL
from mineral_batch.errors import DataError
from mineral_batch.evaluation.thresholds import Rule
from mineral_batch.words import counted
from mineral_train.data.manifest import SPLITS, read_manifest
from mineral_train.model.fetched import fetch_model, shown

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Failure, Image
    from mineral_train.data.manifest import Manifest

_SHOWN = 5


@click.command()
@click.argument("model", type=INPUT)
@click.argument("manifest", type=INPUT)
@click.option(
    "--split",
    default="val",
    show_default=True,
    type=click.Choice(SPLITS),
    help="The split of MANIFEST to calibrate on.",
)
@click.option("-o", "--output", type=LOCAL, help="Folder or file to write. [default: in place of MODEL]")
@click.option(
    "--tune",
    metavar="RULE",
    help="Choose new thresholds too, on the same images: f1 (the highest that the new probabilities expect), "
    "precision=0.9 or recall=0.9.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.")
@click.pass_context
def calibrate(
    context: click.Context,
    model: Path | str,
    manifest: Path | str,
    split: str,
    output: Path | None,
    tune: str | None,
    quiet: bool,
) -> None:
    """Calibrate MODEL (a run's folder or an ONNX file, or its URL) on a split of MANIFEST that it was not trained on.

    Afterwards a probability says how often such an answer is right: 80% of answers given as 0.8 are right. Rankings
    and average precision do not change. Thresholds move with the probabilities, so that the same minerals are listed as
    before, unless --tune chooses new ones; thresholds that are all 0.5 stay at 0.5.

    `fit` does this by itself when it ends.
    """
    rule = Rule.parse(tune) if tune else None
    named, model = model, fetch_model(model)
    if not model.exists():
        raise DataError(f"there is no model {model}: name a run's folder or an ONNX file")
    if model != named and output is None:
        raise click.UsageError(f"nothing is written to {shown(named)}: say with -o where the calibrated model goes")
    calibrate_one = _checkpoint if model.is_dir() else _onnx
    contract, failures = calibrate_one(model, manifest, split, output, rule, quiet)
    click.echo("\n".join(report(contract, output or model)))
    if failures:
        first = failures[0].path
        click.echo(f"{counted(len(failures))} could not be read and left out, the first: {first}", err=True)
        context.exit(EXIT_SOME_IMAGES_FAILED)


def report(contract: ModelContract, target: Path) -> list[str]:
    """What was done, in lines for the user."""
    calibration = contract.calibration
    assert calibration is not None
    before, after = calibration.before, calibration.after
    without = [label for label, count in zip(contract.labels, calibration.positives, strict=True) if not count]
    lines = [
        f"{target} is calibrated on {calibration.images} images ({calibration.dataset}):",
        f"  expected calibration error {before.ece:.4f} before, {after.ece:.4f} after (cross-validated)",
        f"  log loss {before.log_loss:.4f} before, {after.log_loss:.4f} after",
        f"  Brier score {before.brier:.4f} before, {after.brier:.4f} after",
    ]
    if without:
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        lines.append(
            f"  in none of these images, so the common map is used for them: {', '.join(without[:_SHOWN])}{more}"
        )
    origin = contract.provenance.get("thresholds")
    if isinstance(origin, dict):
        promise = _without_promise(origin.get("without_promise"), contract)
        lines.append(f"  thresholds by {origin.get('rule')}{promise}")
    return lines


def _without_promise(names: object, contract: ModelContract) -> str:
    return f"; no promise for {len(names)} of {len(contract.labels)} minerals" if isinstance(names, list) else ""


def _rows_of(manifest: Path | str, labels: tuple[str, ...], split: str) -> Manifest:
    table = read_manifest(manifest, labels)
    if not table.select(split):
        raise DataError(f"{shown(manifest)} has no rows of split {split!r}: name another with --split")
    return table


def _checkpoint(
    folder: Path, manifest: Path | str, split: str, output: Path | None, rule: Rule | None, quiet: bool
) -> tuple[ModelContract, list[Failure]]:
    from mineral_train.data.dataset import PhotoDataset
    from mineral_train.training.calibrate import calibrate_checkpoint
    from mineral_train.training.checkpoint import load_checkpoint
    from mineral_train.training.distributed import Process, choose_device
    from mineral_train.training.evaluate import predict_logits

    del quiet  # a checkpoint's images are predicted in one go
    model, contract = load_checkpoint(folder)
    table = _rows_of(manifest, contract.labels, split)
    dataset = PhotoDataset(table.select(split), table.labels, contract.input, None)
    device = choose_device("auto")
    logits = predict_logits(model.to(device), dataset, Process(0, 1, device), batch=16, workers=0)
    words = f"split {split} of {Path(manifest).name}"
    return calibrate_checkpoint(folder, logits.numpy(), table.targets(split), words, target=output, rule=rule), []


def _onnx(
    path: Path, manifest: Path | str, split: str, output: Path | None, rule: Rule | None, quiet: bool
) -> tuple[ModelContract, list[Failure]]:
    from tqdm import tqdm

    from mineral_batch.model.onnx_file import read_contract, require_model_or_nothing
    from mineral_train.training.calibrate import calibrate_onnx

    def progress(decoded: Iterable[Image | Failure], total: int) -> Iterable[Image | Failure]:
        bar: Iterable[Image | Failure] = tqdm(
            decoded, total=total, desc="predicting", unit=" images", disable=quiet or None
        )
        return bar

    if output is not None:
        require_model_or_nothing(output)
    table = _rows_of(manifest, read_contract(path).labels, split)
    words = f"split {split} of {Path(manifest).name}"
    return calibrate_onnx(
        path, table.select(split), table.targets(split), words, target=output, rule=rule, progress=progress
    )
