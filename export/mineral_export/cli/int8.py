"""`mineral-export int8`: a float32 ONNX file in, a quantised one out."""

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

_ENGINES = ("onnxruntime", "openvino", "tensorrt")


@click.command()
@click.argument("model", type=FILE)
@calibration_options
@quiet_option
@click.option("--target", type=click.Choice(_ENGINES), default="onnxruntime", show_default=True, help="Engine.")
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .int8.onnx.")
@pictures_options
@gate_options
def int8(
    model: Path,
    calibration: Calibration,
    quiet: bool,
    target: str,
    output: Path | None,
    pictures: Pictures,
    gate: Gate,
) -> None:
    """Quantise MODEL (float32, from mineral-export onnx) to INT8 with the photographs of --calibrate.

    The most sensitive layers, by their measured error, are left as they were until the file is within the budget: 0.5
    points of mAP (with --labels) or the budget of probabilities (without). Compare on other photographs than those
    of --calibrate. What is not quantised is FP16 for TensorRT and float32 for the others. Needs the extra int8 (nncf).
    """
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.int8 import to_int8

    contract = read_contract(model)
    with Phases(quiet=quiet) as phases:
        result = to_int8(
            model,
            output or model.with_suffix(".int8.onnx"),
            calibration.pixels(contract.input),
            for_engine=target,
            pictures=lambda: pictures.samples(contract),
            budget=gate.budget("int8"),
            force=gate.force,
            progress=phases,
        )
    report(result.exported, model)
    report_layers(result, "INT8")
