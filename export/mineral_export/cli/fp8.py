"""`mineral-export fp8`: a float32 ONNX file in, one with FP8 layers out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_export.cli._options import (
    FILE,
    Phases,
    calibration_options,
    calibration_pictures,
    gate_options,
    report,
    report_layers,
)

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@click.argument("model", type=FILE)
@calibration_options
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .fp8.onnx.")
@gate_options
def fp8(
    model: Path,
    calibrate: Path,
    calibration_count: int,
    quiet: bool,
    output: Path | None,
    photos: Path | None,
    labels: Path | None,
    split: str | None,
    count: int | None,
    points: float | None,
    force: bool,
) -> None:
    """Quantise MODEL (float32, from mineral-export onnx) to FP8, for TensorRT on Hopper, Ada and newer GPUs.

    The most sensitive layers, by their measured error, are left in FP16, as is what cannot be quantised, until the file
    is within the budget: 0.5 points of mAP (with --labels) or the budget of probabilities (without), compared on ONNX
    Runtime's CPU engine. Needs NVIDIA ModelOpt: pip install "nvidia-modelopt[onnx]", in an environment of its own.
    """
    from functools import partial

    from mineral_batch._onnx_file import read_contract
    from mineral_export.fp8 import to_fp8
    from mineral_export.verify import budget_of, samples

    contract = read_contract(model)
    with Phases(quiet=quiet) as phases:
        result = to_fp8(
            model,
            output or model.with_suffix(".fp8.onnx"),
            calibration_pictures(calibrate, contract.input, calibration_count),
            pictures=partial(samples, contract, photos, labels, split, count),
            budget=budget_of("float8", points),
            force=force,
            progress=phases,
        )
    report(result.exported, model)
    report_layers(result, "FP8")
