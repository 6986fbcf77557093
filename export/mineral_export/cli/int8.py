"""`mineral-export int8`: a float32 ONNX file in, one with INT8 layers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL, require_output
from mineral_batch.system import require_packages
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

_ENGINES = ("onnxruntime", "openvino", "tensorrt")


@click.command()
@click.argument("model", type=FETCHED)
@calibration_options
@quiet_option
@click.option(
    "--target", type=click.Choice(_ENGINES), default="onnxruntime", show_default=True, help="Engine that will run it."
)
@click.option("-o", "--output", type=LOCAL, metavar="FILE", help="ONNX file to write. [default: MODEL.int8.onnx]")
@held_out_sample_options
@budget_options
def int8(
    model: Path,
    calibration: CalibrationOptions,
    quiet: bool,
    target: str,
    output: Path | None,
    samples: SampleOptions,
    limits: BudgetOptions,
) -> None:
    """Quantize MODEL (float32, from mineral-export onnx) to INT8 with the photographs of --calibrate.

    One in five of these photographs (at most 64) is held out of calibration, and the file is compared with MODEL on
    them, or on those of --photos or --labels. Layers are excluded from quantization, the one with the largest measured
    error first, until the file is within the budget: 0.5 points of mAP (with --labels) or the budget for probabilities
    (without). What is not quantized is FP16 for TensorRT and float32 for the others. Needs the extra int8 (nncf).
    """
    require_packages("int8", "int8", "onnx", "nncf")
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.int8 import to_int8
    from mineral_export.verify.staging import require_writable

    contract, place = read_contract(model), require_output(model, output, model.with_suffix(".int8.onnx"))
    require_writable(place)  # before photographs are decoded
    images = calibration.load(contract.input, hold_out=not samples.are_named)
    with ProgressPhases(quiet=quiet) as phases:
        result = to_int8(
            model,
            place,
            images.pixels,
            for_engine=target,
            samples=lambda: samples.load(contract) if samples.are_named else images.samples(samples.count),
            budget=limits.budget("int8"),
            force=limits.force,
            progress=phases,
        )
    echo_exported(result.exported, model)
    echo_layers(result, "INT8")
