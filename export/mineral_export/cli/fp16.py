"""`mineral-export fp16`: a float32 ONNX file in, a typed FP16 one out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_export.cli._options import FILE, gate_options, pictures_options, report

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.cli._options import Gate, Pictures


@click.command()
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, help="Default: MODEL with .fp16.onnx.")
@pictures_options
@gate_options
def fp16(model: Path, output: Path | None, pictures: Pictures, gate: Gate) -> None:
    """Write MODEL (float32, from mineral-export onnx) as a typed FP16 graph, for GPUs.

    Normalisation, LayerNorm, softmax and the last sigmoid stay float32; uint8 pictures go in and float32
    probabilities come out as before. The file is compared with MODEL before it is written, and refused beyond 0.1
    points of mAP (with --labels) or the budget of probabilities (without).
    """
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.fp16 import to_fp16

    target, compared_on = output or model.with_suffix(".fp16.onnx"), pictures.samples(read_contract(model))
    report(to_fp16(model, target, pictures=compared_on, budget=gate.budget("float16"), force=gate.force), model)
