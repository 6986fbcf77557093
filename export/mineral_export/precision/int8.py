"""INT8 by post-training static quantization: explicit Q/DQ in the ONNX graph, sensitive layers left as they were.

NNCF calibrates on real images (Nagel et al. 2019, arXiv:1906.04721, for the bias correction; SmoothQuant, Xiao et al.
2022, for transformers). ONNX Runtime's own static quantization lost 13 points on a ViT where NNCF lost 0.6. The same
graph format serves three engines; they differ in the zero points and signs that they accept.
"""

from __future__ import annotations

import io
import logging
import os
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from mineral_batch.errors import BackendError
from mineral_batch.system import pip_install
from mineral_export.precision.qdq import DEQUANTIZE, QUANTIZE, side_nodes
from mineral_export.precision.quantize import Method, Quantized, Rest, quantize_within_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mineral_batch.types import Pixels
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.samples import Progress, Samples


@dataclass(frozen=True)
class Target:
    """What an engine accepts.

    Attributes:
        activations: `signed` with zero points of 0, as TensorRT wants; `unsigned`, which ONNX Runtime computes in; or
            `any`, each tensor as its values suggest.
        engine: that verifies the file.
        is_smoothed: whether a transformer's activations may be scaled per channel before they are rounded (SmoothQuant,
            Xiao et al. 2023). OpenVINO 2026.4.1 computes such a graph wrongly: probabilities off by up to 0.65.
        rest: precision of what is not quantized. A GPU multiplies FP16 8 to 16 times as fast as float32; a CPU has no
            FP16.
    """

    activations: Literal["signed", "unsigned", "any"]
    engine: str
    is_smoothed: bool = True
    rest: Rest = "float32"


TARGETS: dict[str, Target] = {
    "onnxruntime": Target("unsigned", engine="onnx-cpu"),
    "openvino": Target("any", engine="openvino:float32", is_smoothed=False),
    "tensorrt": Target("signed", engine="onnx-cpu", rest="float16"),
}


def to_int8(
    source: Path,
    target: Path,
    calibration: Pixels,
    *,
    for_engine: str = "onnxruntime",
    samples: Callable[[], Samples] | None = None,
    budget: Budget | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Write an ONNX file with INT8 layers, as many as the budget allows; see `quantize_within_budget`.

    Args:
        source: float32, written by `export_onnx`.
        target: where to write.
        calibration: (N, H, W, 3) uint8 real images; a few hundred.
        for_engine: a name in `TARGETS`.
        samples: makes the images to compare on, for each attempt; None for synthetic ones.
        budget: None for `BUDGETS["int8"]`.
        force: write the first attempt whatever it loses.
        progress: called while working.

    Raises:
        ParityError: if even the last attempt exceeds the budget; nothing is written.
        BackendError: if nncf, or the engine that verifies, is not installed.
        ContractError: if the source is not a model with a contract.
        DataError: if the source is not float32 or, for TensorRT, older than opset 19, or the target cannot be written.
    """
    wanted = TARGETS[for_engine]
    method = Method(
        "int8",
        lambda model, images: quantize_by_nncf(model, images, len(calibration), wanted),
        wanted.engine,
        wanted.rest,
        {"quantized_for": for_engine},
    )
    return quantize_within_budget(
        source, target, method, calibration, samples=samples, budget=budget, force=force, progress=progress
    )


def quantize_by_nncf(model: ModelProto, calibration: Iterable[Pixels], count: int, target: Target) -> ModelProto:
    """Return the model with Q/DQ pairs: weights per output channel, activations per tensor, biases in float32.

    It takes one pass over the images, two for a transformer, with every activation of one image in memory.

    Args:
        model: float32; left as it is.
        calibration: images, (H, W, 3) uint8.
        count: number of images.
        target: the engine that the model is for.

    Raises:
        BackendError: if nncf is not installed.
    """
    nncf, symmetric = _nncf(), target.activations == "signed"
    name = model.graph.input[0].name
    is_transformer = any(node.op_type == "LayerNormalization" for node in model.graph.node)
    copy = ModelProto()
    copy.CopyFrom(model)
    with redirect_stdout(io.StringIO()):  # its progress bars
        result: ModelProto = nncf.quantize(
            copy,
            nncf.Dataset(calibration, lambda image: {name: image[None]}),
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            subset_size=count,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            ignored_scope=nncf.IgnoredScope(names=[node.name for node in side_nodes(model)]),
            advanced_parameters=_parameters(target),
        )
    if symmetric:
        _signed(result)
    elif target.activations == "unsigned":
        _unsigned(result)
    return result


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # its only switch for the telemetry that it sends by default
    try:
        import nncf
    except ImportError as error:
        raise BackendError(f"INT8 needs nncf, which does not load ({error}): {pip_install('int8')}") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _parameters(target: Target) -> Any:
    """Quantize activations per tensor: no engine fuses what is scaled per channel.

    The first layer's weights are halved for CPUs whose 16-bit sums overflow; a GPU's do not.
    """
    from nncf.quantization import advanced_parameters as nncf

    off = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    return nncf.AdvancedQuantizationParameters(
        activations_quantization_params=nncf.QuantizationParameters(per_channel=False),
        overflow_fix=nncf.OverflowFix.DISABLE if target.activations == "signed" else None,
        smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters() if target.is_smoothed else off,
        backend_params={"compress_weights": False},  # see `qdq`
    )


def _unsigned(model: ModelProto) -> None:
    """Make signed activations and their zero points unsigned: the same values, 128 steps up.

    ONNX Runtime computes in 8 bits only where a layer's input and output are of one type, and NNCF makes those signed
    whose range is symmetric: on the starter model 17 of 48 convolutions stayed float32, and INT8 was the slower form.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    rounding = [node for node in model.graph.node if node.op_type == QUANTIZE and node.input[0] not in weights]
    for name in {node.input[2] for node in rounding if len(node.input) > 2}:
        if weights[name].data_type == TensorProto.INT8:
            values = numpy_helper.to_array(weights[name]).astype(np.int16) + 128
            weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.uint8), name))
    del model.graph.value_info[:]  # they name the old types; all are inferred anew


def _signed(model: ModelProto) -> None:
    """Make unsigned tensors (the output of a ReLU) signed, as TensorRT wants: the same range in 127 steps, not 255.

    NNCF has no option for that: it refuses to force the sign as incompatible with every engine that it knows.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in (QUANTIZE, DEQUANTIZE)]
    zeros = {node.input[2] for node in nodes if len(node.input) > 2}
    unsigned = {name for name in zeros if weights[name].data_type == TensorProto.UINT8}
    scales = {node.input[1] for node in nodes if len(node.input) > 2 and node.input[2] in unsigned}
    for name in zeros:
        values = numpy_helper.to_array(weights[name])
        if values.any():
            raise BackendError(f"nncf chose a zero point other than 0 ({name}), which TensorRT refuses")
        weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.int8), name))
    del model.graph.value_info[:]  # they name the old types; all are inferred anew
    for name in scales:
        values = numpy_helper.to_array(weights[name]) * np.float32(255 / 127)
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
