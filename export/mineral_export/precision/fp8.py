"""FP8 (E4M3) by post-training quantization, for the matrix units of Hopper, Ada and newer: explicit Q/DQ pairs.

Four bits of exponent keep the outliers that INT8 spends its steps on, so there is neither smoothing nor a zero point:
weights are scaled per output channel, activations per tensor, by the largest value seen. NVIDIA ModelOpt places the
pairs where TensorRT has FP8 kernels. NNCF's FP8 places them where INT8 engines want them, and lost 7.4 points of mAP on
the starter model where ModelOpt lost 2.7, 3.2 on a ViT-Ti where ModelOpt lost none (benchmarks/README.md).
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mineral_batch.errors import BackendError
from mineral_export.precision.qdq import side_nodes
from mineral_export.precision.quantize import Method, quantize_within_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from onnx import ModelProto

    from mineral_batch.types import Pixels
    from mineral_export.precision.quantize import Quantized
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.samples import Progress, Samples


def to_fp8(
    source: Path,
    target: Path,
    calibration: Pixels,
    *,
    samples: Callable[[], Samples] | None = None,
    budget: Budget | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Write an ONNX file with FP8 layers, as many as the budget allows; see `quantize_within_budget`.

    The file is compared on ONNX Runtime's CPU engine, which rounds to FP8 as the graph says and computes in float32 in
    between: that measures the loss by rounding, not the speed. What is not quantized is FP16.

    Args:
        source: float32, written by `export_onnx` with opset 19 or newer.
        target: where to write.
        calibration: (N, H, W, 3) uint8 real images; a few hundred.
        samples: makes the images to compare on, for each attempt; None for synthetic ones.
        budget: None for `BUDGETS["float8"]`.
        force: write the first attempt whatever it loses.
        progress: called while working.

    Raises:
        ParityError: if even the last attempt exceeds the budget; nothing is written.
        BackendError: if ModelOpt is not installed.
        ContractError: if the source is not a model with a contract.
        DataError: if the source is not float32 or too old an opset, or the target cannot be written.
    """
    method = Method("float8", _by_modelopt, "onnx-cpu", "float16")
    return quantize_within_budget(
        source, target, method, calibration, samples=samples, budget=budget, force=force, progress=progress
    )


def _by_modelopt(model: ModelProto, images: Iterable[Pixels]) -> ModelProto:
    """Return the model with Q/DQ pairs where TensorRT computes in FP8; what is not rounded stays float32 here."""
    quantize = _modelopt()
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        source, target = Path(folder, "float32.onnx"), Path(folder, "float8.onnx")
        onnx.save(model, source)
        with redirect_stdout(io.StringIO()):  # it prints that a GPU is missing, and notes of its packages
            quantize(
                str(source),
                quantize_mode="fp8",
                calibration_data={model.graph.input[0].name: np.stack(list(images))},
                calibration_method="max",
                nodes_to_exclude=[re.escape(node.name) for node in side_nodes(model)],
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                output_path=str(target),
                log_level="CRITICAL",
            )
        return onnx.load(target)


def _modelopt() -> Any:
    try:
        from modelopt.onnx.quantization import quantize
    except ImportError as error:
        raise BackendError(
            f'FP8 needs NVIDIA ModelOpt, which does not load ({error}): pip install "nvidia-modelopt[onnx]" in an '
            f"environment of its own, because it installs onnxruntime-gpu, which breaks onnxruntime"
        ) from error
    logging.getLogger("modelopt").setLevel(logging.CRITICAL)
    return quantize
