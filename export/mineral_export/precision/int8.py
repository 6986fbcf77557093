"""INT8 by post-training static quantisation: explicit Q/DQ in the ONNX graph, sensitive layers left as they were.

NNCF calibrates on real pictures (Nagel et al. 2019, arXiv:1906.04721, for the bias correction; SmoothQuant, Xiao et
al. 2022, for transformers). ONNX Runtime's own static quantisation lost 13 points on a ViT where NNCF lost 0.6. One
graph format serves three engines; what they differ in is which zero points and signs they take.
"""

from __future__ import annotations

import io
import logging
import math
import os
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from mineral_batch.errors import BackendError, DataError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import pip_install
from mineral_export.precision.fp16 import converted
from mineral_export.precision.qdq import (
    DEQUANTISE,
    LAYERS,
    QUANTISE,
    is_quantised,
    layer_errors,
    left_in_float32,
    packed,
    quantised_layers,
)
from mineral_export.verify import parity as verify
from mineral_export.verify.gate import Exported, derive, require_place
from mineral_export.verify.parity import ParityError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from mineral_batch.types import Pixels
    from mineral_export.verify.parity import Budget, Progress, Samples

    Quantiser = Callable[[ModelProto, Iterable[Pixels]], ModelProto]

Rest = Literal["float32", "float16"]

#: Shares of the layers that are not quantised, tried in this order until the answers are within the budget.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)

#: The first whose QuantizeLinear knows FP16 and FP8.
OLDEST_OPSET = 19

# Pictures on which a layer's own error is measured: an average over all places and channels needs few.
_MEASURED = 4


@dataclass(frozen=True)
class Target:
    """What an engine takes.

    Attributes:
        activations: `signed` with zero points of 0, as TensorRT wants; `unsigned`, which ONNX Runtime computes in; or
            `any`, each tensor as its values suggest.
        engine: that verifies the file.
        is_smoothed: whether a transformer's activations may be scaled per channel before they are rounded (SmoothQuant,
            Xiao et al. 2023). OpenVINO 2026.4.1 computes such a graph wrongly: answers off by up to 0.65.
        rest: precision of what is not quantised. A GPU multiplies FP16 8 to 16 times as fast as float32; a processor
            has no FP16.
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


@dataclass(frozen=True)
class Quantised:
    """A written file of 8 bits.

    Attributes:
        exported: where it is, and its parity.
        layers: how many convolutions and matrix products the graph has.
        rounded: how many of them have both factors in 8 bits.
        kept: names of those that were taken back to `rest` for the budget, the most sensitive first; the others
            that are not `rounded` the quantiser itself left alone.
        rest: precision of what is not quantised.
        errors: root of |quantised - float|^2 / |float|^2 of each quantised layer by its name; empty if the first
            attempt was within the budget.
    """

    exported: Exported
    layers: int
    rounded: int
    kept: tuple[str, ...]
    rest: Rest
    errors: dict[str, float]


def to_int8(
    source: Path,
    target: Path,
    calibration: Pixels,
    *,
    for_engine: str = "onnxruntime",
    pictures: Callable[[], Samples] | None = None,
    budget: Budget | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantised:
    """Write an ONNX file with INT8 layers, as many as the budget allows; see `within_budget`.

    Args:
        source: float32, written by `export_onnx`.
        target: where to write.
        calibration: (N, H, W, 3) uint8 real pictures; a few hundred.
        for_engine: a name in `TARGETS`.
        pictures: makes what is compared on, anew for each attempt; None for synthetic ones.
        budget: None for `BUDGETS["int8"]`.
        force: write the first attempt whatever it loses.
        progress: called while working.

    Raises:
        ParityError: if even the last attempt is beyond the budget; nothing is written.
        BackendError: if nncf, or the engine that verifies, is not installed.
        ContractError: if the source is no model with a contract.
        DataError: if the source is not float32 or, for TensorRT, older than opset 19, or the target cannot be written.
    """
    wanted = TARGETS[for_engine]
    method = Method(
        "int8",
        lambda model, given: quantised(model, given, len(calibration), wanted),
        wanted.engine,
        wanted.rest,
        {"quantised_for": for_engine},
    )
    return within_budget(
        source, target, method, calibration, pictures=pictures, budget=budget, force=force, progress=progress
    )


@dataclass(frozen=True)
class Method:
    """A way to a file of 8 bits.

    Attributes:
        precision: a name in `verify.BUDGETS`.
        quantise: gives the model with Q/DQ pairs, its weights still float, and its nodes under their old names; it is
            given the pictures of the calibration one by one, each (H, W, 3), as often as it iterates over them.
        engine: that answers for both files when they are compared.
        rest: precision of what is not quantised.
        provenance: more facts for the contract.
    """

    precision: str
    quantise: Quantiser
    engine: str
    rest: Rest
    provenance: Mapping[str, object] = field(default_factory=dict)

    def finished(self, model: ModelProto) -> ModelProto:
        """The graph to be written: weights are rounded last, by the scales that stand in the file."""
        return packed(converted(model) if self.rest == "float16" else model)


def within_budget(
    source: Path,
    target: Path,
    method: Method,
    calibration: Pixels,
    *,
    pictures: Callable[[], Samples] | None,
    budget: Budget | None,
    force: bool,
    progress: Progress | None,
) -> Quantised:
    """Quantise once, then take layers back, the most sensitive first, until the answers are within budget.

    Sensitive is a layer by its own error, measured (`layer_errors`). At most as many attempts are compared as there
    are `SHARES`.

    Args:
        source: float32, with a contract.
        target: where to write.
        method: how.
        calibration: (N, H, W, 3) uint8.
        pictures: makes what is compared on, anew for each attempt; None for synthetic ones.
        budget: None for that of the precision.
        force: write the first attempt whatever it loses.
        progress: called while working.

    Raises:
        ParityError: if even the last attempt is beyond the budget; nothing is written.
        BackendError: if the quantiser leaves every layer as it was, or the engine is not installed.
        ContractError: if the source is no model with a contract.
        DataError: if the source is not float32 or too old an opset for the rest, or the target cannot be written.
    """
    contract, told = read_contract(source), progress or _silent
    require_place(target)
    model = _float32(source, method.rest)
    full = method.quantise(model, _Counted(calibration, told, "calibration"))
    rounded = _required(quantised_layers(full), source)
    counts = sorted({math.ceil(share * len(rounded)) for share in SHARES})
    errors: dict[str, float] = {}
    for attempt, count in enumerate(counts, 1):
        kept = tuple(sorted(errors, key=lambda name: -errors[name])[:count])
        samples = pictures() if pictures else verify.samples(contract)
        phase = f"comparing, attempt {attempt} of at most {len(counts)}, {count} layers in {method.rest}"
        try:
            exported = derive(
                source,
                target,
                method.precision,
                _saver(method.finished(left_in_float32(full, model, kept))),
                pictures=samples.counted(told, phase),
                budget=budget,
                engine=method.engine,
                force=force,
                calibration_pictures=len(calibration),
                unquantized=method.rest,
                kept_layers=list(kept),
                **method.provenance,
            )
        except ParityError as error:
            if count == counts[-1]:
                tried = f"none up to the {count} most sensitive of {len(rounded)} layers in {method.rest}"
                raise ParityError(f"{error}; tried with {tried}") from None
            errors = errors or layer_errors(model, full, calibration[:_MEASURED])
        else:
            layers = sum(node.op_type in LAYERS for node in model.graph.node)
            return Quantised(exported, layers, len(rounded) - len(kept), kept, method.rest, errors)
    raise AssertionError("the last attempt returns or raises")


def _required(layers: tuple[str, ...], source: Path) -> tuple[str, ...]:
    if not layers:
        raise BackendError(
            f"no layer of {source} was quantised: it has none of {', '.join(sorted(LAYERS))} to quantise"
        )
    return layers


def _float32(source: Path, rest: Rest) -> ModelProto:
    model = onnx.load(source)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if rest == "float16" and opset < OLDEST_OPSET:
        raise DataError(
            f"{source} is of opset {opset}, and quantisation beside FP16 begins with {OLDEST_OPSET}: "
            f"export it without --opset"
        )
    if is_quantised(model):
        raise DataError(f"{source} is quantised already: give the float32 file that it was made from")
    if any(weight.data_type == TensorProto.FLOAT16 for weight in model.graph.initializer):
        raise DataError(f"{source} is FP16: give the float32 file that it was made from")
    return model


def _saver(model: ModelProto) -> Callable[[Path, Path], None]:
    def save(_: Path, target: Path) -> None:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target)

    return save


def _silent(phase: str, step: int, steps: int) -> None:
    """No progress."""


@dataclass(frozen=True)
class _Counted:
    """Pictures one by one; each pass over them is told."""

    pixels: Pixels
    progress: Progress
    phase: str

    def __iter__(self) -> Iterator[Pixels]:
        for index, picture in enumerate(self.pixels):
            self.progress(self.phase, index, len(self.pixels))
            yield picture


def quantised(model: ModelProto, calibration: Iterable[Pixels], count: int, target: Target) -> ModelProto:
    """The model with Q/DQ pairs by NNCF: weights per output channel, activations per tensor, biases in float32.

    Its time is one pass over the pictures, two for a transformer, with every activation of one picture in memory.

    Args:
        model: float32; left as it is.
        calibration: pictures of (H, W, 3) uint8.
        count: of them.
        target: what takes the model.

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
            nncf.Dataset(calibration, lambda picture: {name: picture[None]}),
            preset=nncf.QuantizationPreset.PERFORMANCE if symmetric else nncf.QuantizationPreset.MIXED,
            subset_size=count,
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            advanced_parameters=_parameters(target),
        )
    if symmetric:
        _signed(result)
    elif target.activations == "unsigned":
        _unsigned(result)
    return result


def _nncf() -> Any:
    os.environ.setdefault("NNCF_CI", "1")  # its only switch for the telemetry that it sends without asking
    try:
        import nncf
    except ImportError as error:
        raise BackendError(f"INT8 needs nncf, which does not load ({error}): {pip_install('int8')}") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _parameters(target: Target) -> Any:
    """Activations per tensor: no engine fuses what is scaled per channel.

    The first layer's weights are halved for processors whose 16-bit sums overflow; a GPU's do not.
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
    """Make signed activations unsigned, zero points and all: the same values, 128 steps up.

    ONNX Runtime computes in 8 bits only where a layer's input and output are of one type, and NNCF makes those signed
    whose range is symmetric: on the starter model 17 of 48 convolutions stayed float32, and INT8 was the slower form.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    rounding = [node for node in model.graph.node if node.op_type == QUANTISE and node.input[0] not in weights]
    for name in {node.input[2] for node in rounding if len(node.input) > 2}:
        if weights[name].data_type == TensorProto.INT8:
            values = numpy_helper.to_array(weights[name]).astype(np.int16) + 128
            weights[name].CopyFrom(numpy_helper.from_array(values.astype(np.uint8), name))
    del model.graph.value_info[:]  # they name the old types; all are inferred anew


def _signed(model: ModelProto) -> None:
    """Make unsigned tensors (what follows a ReLU) signed, as TensorRT wants: the same range on 127 steps, not 255.

    NNCF has no option for that: forcing the sign is refused as incompatible with every engine it knows.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in (QUANTISE, DEQUANTISE)]
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
