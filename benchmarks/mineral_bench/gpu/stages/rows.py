"""Names of rows, and the runners of an ONNX file by their rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu.packages import has_tensorrt
from mineral_bench.gpu.runners import onnx_runtime, tensorrt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mineral_bench.gpu.clock import Runner
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings

#: Row of our session of ONNX Runtime.
ENGINE = "ONNX Runtime CUDA FP16"


def backends(settings: Settings) -> list[str]:
    """Return the backends of `predict` to measure."""
    if settings.sizes.dry:
        return ["onnx-cpu"]
    return ["onnx-cuda", *(["tensorrt"] if has_tensorrt() else [])]


def row_of(engine: str) -> str:
    """Return the row of a backend's rate on the device."""
    return "TensorRT FP16" if engine == "tensorrt" else ENGINE


def folder_rows(settings: Settings, name: str) -> list[str]:
    """Return the rows of one engine over all folders."""
    return [f"{name}, {folder}" for folder in settings.sizes.photos]


def runners_of(record: Record, model: Path, precision: str, words: str = "", before: str = "") -> dict[str, Runner]:
    """Return the runners of an ONNX file by row; what is not installed is recorded as left out."""
    ours: dict[str, Runner] = {}
    if precision == "FP16":
        ours[f"{before}{ENGINE}{words}"] = partial(onnx_runtime.onnx_runtime, model=model)
    theirs = {
        f"{before}ONNX Runtime TensorRT {precision}{words}": partial(onnx_runtime.onnx_tensorrt, model=model),
        f"{before}TensorRT {precision}{words}": partial(tensorrt.tensorrt, model=model),
    }
    if has_tensorrt():
        return {**ours, **theirs}
    for name in theirs:
        record.left_out(f"{name} ended", "TensorRT is not installed")
    return ours


def tuned_runners(model: Path, words: str = "", before: str = "") -> dict[str, Runner]:
    """Return the runners of switches that are off by default, until such a row shows that they pay."""
    from mineral_batch.engines.base import Tuning

    switches = {"not deterministic": Tuning(deterministic=False), "NHWC": Tuning(nhwc=True)}
    return {
        f"{before}{ENGINE}{words}, {name}": partial(onnx_runtime.onnx_runtime, model=model, tuning=tuning)
        for name, tuning in switches.items()
    }


def try_row(record: Record, row: str, measure: Callable[[], Any]) -> None:
    """Save a measurement, or why it failed: the others are still measured."""
    if record.has(row):
        return
    try:
        record.save(**{row: measure()})
    except Exception as error:
        record.failed(row, error)
