"""`mineral-export fp8`: a float32 ONNX file in, one with FP8 layers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL, require_output
from mineral_export.cli._options import (
    ProgressPhases,
    budget_options,
    calibration_options,
    echo_exported,
    echo_layers,
    held_out_sample_options,
    quiet_option,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.cli._options import BudgetOptions, CalibrationOptions, SampleOptions


@click.command()
@click.argument("model", type=FETCHED)
@calibration_options
@quiet_option
@click.option("-o", "--output", type=LOCAL, metavar="FILE", help="ONNX file to write. [default: MODEL.fp8.onnx]")
@held_out_sample_options
@budget_options
def fp8(
    model: Path,
    calibration: CalibrationOptions,
    quiet: bool,
    output: Path | None,
    samples: SampleOptions,
    limits: BudgetOptions,
) -> None:
    """Quantize MODEL (float32, from mineral-export onnx) to FP8, for TensorRT on Hopper, Ada and newer GPUs.

    Layers are left in FP16, the one with the largest measured error first, until the file is within the budget: 0.5
    points of mAP (with --labels) or the budget for probabilities (without), compared on ONNX Runtime's CPU engine. What
    cannot be quantized is FP16, too. Needs NVIDIA ModelOpt in its own environment: pip install
    "nvidia-modelopt[onnx]".
    """
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.fp8 import to_fp8
    from mineral_export.verify.staging import require_writable

    contract, target = read_contract(model), require_output(model, output, model.with_suffix(".fp8.onnx"))
    require_writable(target)  # before photographs are decoded
    images = calibration.load(contract.input, hold_out=not samples.are_named)
    with ProgressPhases(quiet=quiet) as phases:
        result = to_fp8(
            model,
            target,
            images.pixels,
            samples=lambda: samples.load(contract) if samples.are_named else images.samples(samples.count),
            budget=limits.budget("float8"),
            force=limits.force,
            progress=phases,
        )
    echo_exported(result.exported, model)
    echo_layers(result, "FP8")
