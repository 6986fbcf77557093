"""Quantize a graph to 8 bits and leave the most sensitive layers as they were, until the loss is within the budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import onnx
from onnx import ModelProto, TensorProto

from mineral_batch.errors import BackendError, DataError
from mineral_batch.model.onnx_file import read_contract
from mineral_export.precision.calibration import MIN_CALIBRATION
from mineral_export.precision.fp16 import converted
from mineral_export.precision.layer_errors import layer_errors
from mineral_export.precision.qdq import LAYERS, is_quantized, layer_count, left_in_float32, packed, quantized_layers
from mineral_export.verify.convert import ExportedFile, convert_and_verify
from mineral_export.verify.parity import ParityError
from mineral_export.verify.samples import load_samples
from mineral_export.verify.staging import require_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from mineral_batch.types import Pixels
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.samples import Progress, Samples

    Quantizer = Callable[[ModelProto, Iterable[Pixels]], ModelProto]

Rest = Literal["float32", "float16"]

#: Shares of the layers that are not quantized, tried in this order until the loss is within the budget.
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4)

#: The first opset whose QuantizeLinear knows FP16 and FP8.
OLDEST_OPSET = 19

# Images on which a layer's own error is measured: an average over all places and channels needs few.
_MEASURED = 4


@dataclass(frozen=True)
class Quantized:
    """A written file of 8 bits.

    Attributes:
        exported: the file, and its parity.
        layers: number of convolutions and matrix products in the graph.
        rounded: how many of them have both factors in 8 bits.
        kept: names of those that were taken back to `rest` to meet the budget, the most sensitive first; the others
            that are not `rounded` were left alone by the quantizer itself.
        rest: precision of what is not quantized.
        errors: root of |quantized - float|^2 / |float|^2 of each quantized layer by its name; empty if the first
            attempt was within the budget.
    """

    exported: ExportedFile
    layers: int
    rounded: int
    kept: tuple[str, ...]
    rest: Rest
    errors: dict[str, float]


@dataclass(frozen=True)
class Method:
    """A way to quantize.

    Attributes:
        precision: a name in `BUDGETS`.
        quantize: (model, calibration images) -> the model with Q/DQ pairs, its weights still float and its nodes under
            their old names. The images, each (H, W, 3), can be iterated over repeatedly.
        engine: runs both files when they are compared.
        rest: precision of what is not quantized.
        provenance: more facts for the contract.
    """

    precision: str
    quantize: Quantizer
    engine: str
    rest: Rest
    provenance: Mapping[str, object] = field(default_factory=dict)

    def finish(self, model: ModelProto) -> ModelProto:
        """Return the graph to write: weights are rounded last, by the scales that are in the file."""
        return packed(converted(model) if self.rest == "float16" else model)


def quantize_within_budget(
    source: Path,
    target: Path,
    method: Method,
    calibration: Pixels,
    *,
    samples: Callable[[], Samples] | None,
    budget: Budget | None,
    force: bool,
    progress: Progress | None,
) -> Quantized:
    """Quantize once, then take layers back, the most sensitive first, until the loss is within the budget.

    How sensitive a layer is, is measured: its own error (`layer_errors`). There is one comparison for each of `SHARES`
    at most.

    Args:
        source: float32, with a contract.
        target: where to write.
        method: how to quantize.
        calibration: (N, H, W, 3) uint8, at least `MIN_CALIBRATION` images.
        samples: makes the images to compare on, for each attempt; None for synthetic ones.
        budget: None for the precision's.
        force: write the first attempt whatever it loses.
        progress: called while working.

    Raises:
        ParityError: if even the last attempt exceeds the budget; nothing is written.
        BackendError: if the quantizer changes no layer, or the engine is not installed.
        ContractError: if the source is not a model with a contract.
        DataError: if there are too few calibration images, the source is not float32 or its opset too old, or the
            target cannot be written.
    """
    contract, progress = read_contract(source), progress or _no_progress
    require_writable(target)
    if len(calibration) < MIN_CALIBRATION:
        raise DataError(
            f"{len(calibration)} calibration images are too few for a reliable range of each layer's values: "
            f"use at least {MIN_CALIBRATION}"
        )
    model = _load_float32(source, method.rest)
    full = method.quantize(model, _WithProgress(calibration, progress, "calibration"))
    layers = _require_quantized(quantized_layers(full), source)
    counts = sorted({math.ceil(share * len(layers)) for share in SHARES})
    errors: dict[str, float] = {}
    for attempt, count in enumerate(counts, 1):
        kept = tuple(sorted(errors, key=lambda name: -errors[name])[:count])
        phase = f"comparing, attempt {attempt} of at most {len(counts)}, {count} layers in {method.rest}"
        try:
            exported = convert_and_verify(
                source,
                target,
                method.precision,
                _saver(method.finish(left_in_float32(full, model, kept))),
                samples=(samples() if samples else load_samples(contract)).with_progress(progress, phase),
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
                tried = f"none up to the {count} most sensitive of {len(layers)} layers in {method.rest}"
                raise ParityError(f"{error}; tried with {tried}") from None
            errors = errors or layer_errors(model, full, calibration[:_MEASURED])
        else:
            return Quantized(exported, layer_count(model), len(layers) - len(kept), kept, method.rest, errors)
    raise AssertionError("the last attempt returns or raises")


def _require_quantized(layers: tuple[str, ...], source: Path) -> tuple[str, ...]:
    if not layers:
        raise BackendError(f"no layer of {source} was quantized: it has none of {', '.join(sorted(LAYERS))}")
    return layers


def _load_float32(source: Path, rest: Rest) -> ModelProto:
    model = onnx.load(source)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if rest == "float16" and opset < OLDEST_OPSET:
        raise DataError(
            f"{source} has opset {opset}; 8 bits beside FP16 need opset {OLDEST_OPSET}: export it without --opset"
        )
    if is_quantized(model):
        raise DataError(f"{source} is quantized already: use the float32 file that it was made from")
    if any(weight.data_type == TensorProto.FLOAT16 for weight in model.graph.initializer):
        raise DataError(f"{source} is FP16: use the float32 file that it was made from")
    return model


def _saver(model: ModelProto) -> Callable[[Path, Path], None]:
    def save(_: Path, target: Path) -> None:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, target)

    return save


def _no_progress(phase: str, step: int, steps: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class _WithProgress:
    """Images one by one; `progress` is called for each, in every pass."""

    pixels: Pixels
    progress: Progress
    phase: str

    def __iter__(self) -> Iterator[Pixels]:
        for index, image in enumerate(self.pixels):
            self.progress(self.phase, index, len(self.pixels))
            yield image
