"""`mineral-export fp16`: a float32 ONNX file in, a typed FP16 one out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mineral_batch.cli.paths import FETCHED, LOCAL, require_output
from mineral_export.cli._options import budget_options, echo_exported, sample_options

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_export.cli._options import BudgetOptions, SampleOptions


@click.command()
@click.argument("model", type=FETCHED)
@click.option("-o", "--output", type=LOCAL, metavar="FILE", help="ONNX file to write. [default: MODEL.fp16.onnx]")
@sample_options
@budget_options
def fp16(model: Path, output: Path | None, samples: SampleOptions, limits: BudgetOptions) -> None:
    """Convert MODEL (float32, from mineral-export onnx) to FP16, for GPUs.

    Operations that need the range of float32 keep it. Input images are still uint8, and output probabilities float32.
    The file is compared with MODEL before it is written, and refused if it loses more than 0.1 points of mAP (with
    --labels) or exceeds the budget for probabilities (without).
    """
    from mineral_batch.model.onnx_file import read_contract
    from mineral_export.precision.fp16 import to_fp16

    target = require_output(model, output, model.with_suffix(".fp16.onnx"))
    compared_on = samples.load(read_contract(model))
    exported = to_fp16(model, target, samples=compared_on, budget=limits.budget("float16"), force=limits.force)
    echo_exported(exported, model)
