"""`mineral-batch info`: what a model file says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED
from mineral_batch.engines.registry import PLAN_SUFFIXES
from mineral_batch.engines.tensorrt.plan import read_record
from mineral_batch.evaluation.thresholds import rule_in_words
from mineral_batch.model.calibration import calibrate_command
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_path

if TYPE_CHECKING:
    from mineral_batch.model.contract import ModelContract


@click.command()
@click.argument("model", required=False, type=FETCHED)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def info(model: Path | None, as_json: bool) -> None:
    """Show the labels, thresholds, input and origin of MODEL (default: the starter model).

    MODEL is an ONNX file, or a TensorRT plan with its .json beside it.
    """
    path = model or starter_path()
    contract = read_record(path).contract if path.suffix in PLAN_SUFFIXES else read_contract(path)
    click.echo(contract.to_json() if as_json else describe(contract, path))


def describe(contract: ModelContract, path: Path) -> str:
    """A contract, and the file that it is of, for people to read."""
    size = contract.input
    facts = {
        "name": contract.name,
        "file": path,
        "license": contract.license or "not stated",
        "input": f"{size.width} x {size.height}, {size.resize}, {size.interpolation}",
        "accuracy": _accuracy(contract),
        "calibrated": _calibration(contract, path),
        "familiar": _familiarity(contract),
        "precision": contract.numerics,
    }
    origin = {
        key.replace("_", " ").replace("sha256", "SHA-256"): value
        for key, value in contract.provenance.items()
        if not isinstance(value, dict)
    }
    width = max(map(len, [*facts, *origin]))
    lines = [
        *(f"{key:<{width}} {value}" for key, value in [*facts.items(), *origin.items()]),
        f"{len(contract.labels)} labels, with the thresholds of their probabilities{_rule(contract)}:",
    ]
    pairs = zip(contract.labels, contract.thresholds, strict=True)
    return "\n".join([*lines, *(f"  {label:<20} {threshold:.3f}" for label, threshold in pairs)])


def _calibration(contract: ModelContract, path: Path) -> str:
    found = contract.calibration
    if found is None:
        return f"no: 0.8 does not mean right in eight of ten; {calibrate_command(path)}"
    return (
        f"on {found.images} images ({found.dataset}), {found.date}: expected calibration error {found.before.ece:.4f} "
        f"before, {found.after.ece:.4f} after; log loss {found.before.log_loss:.4f} before, {found.after.log_loss:.4f} "
        "after"
    )


def _familiarity(contract: ModelContract) -> str:
    found = contract.familiarity
    if found is None:
        return "not known"
    origin = contract.provenance.get("adapted_from")
    return f"compared with {found.images} training images" + (f" of {origin}" if origin else "")


def _rule(contract: ModelContract) -> str:
    origin = contract.provenance.get("thresholds")
    return f" (chosen by {rule_in_words(str(origin.get('rule')))})" if isinstance(origin, dict) else ""


def _accuracy(contract: ModelContract) -> str:
    measured = contract.measured
    if measured is None:
        return "never measured"
    known = measured.low is not None and measured.high is not None
    interval = f", 95% interval {measured.low:.4f} to {measured.high:.4f}" if known else ""
    return (
        f"mAP {measured.mean_ap:.4f}{interval} ({measured.definition}) "
        f"on {measured.images} images of {measured.dataset}"
    )
