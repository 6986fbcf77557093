"""`mineral-export fp8`: a float32 ONNX file in, one with FP8 layers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_export.cli._options import (
    FILE,
    Phases,
    calibration_options,
    gate_options,
    pictures_options,
    quiet_option,
    report,
    report_layers,
)

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.cli._options import Calibration, Gate, Pictures


@click.command()
@click.argument("model", type=FILE)
@calibration_options
@quiet_option
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .fp8.onnx.")
@pictures_options
@gate_options
def fp8(
    model: Path, calibration: Calibration, quiet: bool, output: Path | None, pictures: Pictures, gate: Gate
) -> None:
    """Quantise MODEL (float32, from mineral-export onnx) to FP8, for TensorRT on Hopper, Ada and newer GPUs.

    The most sensitive layers, by their measured error, are left in FP16, as is what cannot be quantised, until the file
    is within the budget: 0.5 points of mAP (with --labels) or the budget of probabilities (without), compared on ONNX
    Runtime's CPU engine. Needs NVIDIA ModelOpt: pip install "nvidia-modelopt[onnx]", in an environment of its own.
    """
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.fp8 import to_fp8

    contract, target = read_contract(model), output or model.with_suffix(".fp8.onnx")
    with Phases(quiet=quiet) as phases:
        result = to_fp8(
            model,
            target,
            calibration.pixels(contract.input),
            pictures=lambda: pictures.samples(contract),
            budget=gate.budget("float8"),
            force=gate.force,
            progress=phases,
        )
    report(result.exported, model)
    report_layers(result, "FP8")
