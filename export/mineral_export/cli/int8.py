"""`mineral-export int8`: a float32 ONNX file in, a quantised one out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_export.cli._options import FILE, budget_of, gate_options, report

if TYPE_CHECKING:
    from pathlib import Path

_ENGINES = ("onnxruntime", "openvino", "tensorrt")


@click.command()
@click.argument("model", type=FILE)
@click.option("--calibrate", type=FILE, required=True, help="Folder of photographs like those to be predicted.")
@click.option("--calibration-count", default=256, show_default=True, help="Of them, spread evenly over the folder.")
@click.option("--target", type=click.Choice(_ENGINES), default="onnxruntime", show_default=True, help="Engine.")
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .int8.onnx.")
@gate_options
def int8(
    model: Path,
    calibrate: Path,
    calibration_count: int,
    target: str,
    output: Path | None,
    photos: Path | None,
    labels: Path | None,
    split: str | None,
    count: int | None,
    points: float | None,
    force: bool,
) -> None:
    """Quantise MODEL (float32, from mineral-export onnx) to INT8 with the photographs of --calibrate.

    The most sensitive layers, by their measured error, are left in float32 until the file is within the budget: 0.5
    points of mAP (with --labels) or the budget of probabilities (without). Compare on other photographs than those
    of --calibrate. Needs the extra int8 (nncf).
    """
    from functools import partial

    from mineral_batch._onnx_file import read_contract
    from mineral_export.quantise import to_int8
    from mineral_export.verify import samples, spread

    contract = read_contract(model)
    result = to_int8(
        model,
        output or model.with_suffix(".int8.onnx"),
        spread([calibrate], contract.input, calibration_count),
        for_engine=target,
        pictures=partial(samples, contract, photos, labels, split, count),
        budget=budget_of("int8", points),
        force=force,
    )
    report(result.exported, model)
    click.echo(
        f"{result.layers - len(result.kept)} of {result.layers} layers in INT8; in float32: "
        f"{', '.join(result.kept) or 'none'}"
    )
