"""TensorRT for RTX on this chip, and the paper's model in 8 bits."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import subjects
from mineral_bench.gpu.clock import by_batch
from mineral_bench.gpu.end_to_end import measure_folders
from mineral_bench.gpu.packages import has_tensorrt
from mineral_bench.gpu.record import first_line
from mineral_bench.gpu.stages.rows import runners_of
from mineral_bench.gpu.stages.verify import compare_with_float32

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings
    from mineral_export.precision.quantize import Quantized


def rtx(settings: Settings, record: Record) -> None:
    """Try once to build an engine of TensorRT for RTX for this chip: it does not have a target for every chip."""
    from mineral_batch.engines.tensorrt.options import Options
    from mineral_batch.engines.tensorrt.plan import Profile
    from mineral_batch.errors import MineralError
    from mineral_export.tensorrt import export_engine

    batch, target = settings.sizes.few_batches[0], settings.models / "rtx.plan"
    # Without a GPU it builds for another machine's, and cannot run.
    options = Options(Profile(batch, batch, batch), ("8.9",) if settings.sizes.dry else ())
    try:
        exported = export_engine(settings.model("float16"), target, options, runtime="tensorrt-rtx", force=True)
    except MineralError as error:  # its message is the result
        record.save(said=first_line(error))
        return
    record.values.pop("said", None)  # of an earlier attempt
    record.save(built=f"{exported.size / 1e6:.1f} MB for {', '.join(exported.record.compute_capabilities)}")
    record.save(products=dict(exported.record.products), layers=dict(exported.record.layers))
    record.save(compared=str(exported.parity) if exported.parity else f"not compared: {exported.why_not}")
    if exported.parity:  # it runs here
        compare_with_float32(settings, record, "tensorrt-rtx", str(target), "float16")
        record.judged_by("tensorrt-rtx", ["tensorrt-rtx, 384"])
        measure_folders(settings, record, "tensorrt-rtx", ["384"], model=target, backend="tensorrt")


def quantized(settings: Settings, record: Record) -> None:
    """Quantize the paper's model to INT8 and FP8; verify and measure it if TensorRT is there."""
    from mineral_batch.errors import MineralError

    if not (settings.sizes.dry or has_tensorrt()):
        for precision in ("int8", "float8"):
            record.left_out(f"{precision}_graph", "TensorRT is not installed; no other engine runs it in its types")
        return
    for precision, make in {"int8": _int8, "float8": _float8}.items():
        target, row = settings.model(precision), f"{precision}_graph"
        if not target.is_file():
            try:
                record.save(**{row: make(settings, target)})
            except MineralError as error:  # such as a package that is missing
                record.save(**{row: f"not there: {first_line(error)}"})
                continue
            except Exception as error:  # the other precision is still tried
                record.failed(row, error)
                continue
        elif not record.has(row) or str(record.values[row]).startswith("not there"):
            record.save(**{row: f"there already, {target.stat().st_size / 1e6:.0f} MB"})
        if settings.sizes.dry:
            record.left_out(f"{precision}_engine", "there is no GPU in a dry run")
            continue
        compare_with_float32(settings, record, f"tensorrt {precision}", f"{target}@tensorrt", precision)
        words = {"int8": "INT8", "float8": "FP8"}[precision]
        record.judged_by(f"tensorrt {precision}", [f"TensorRT {words}"])
        by_batch(settings, record, runners_of(record, target, words), settings.sizes.few_batches)


def _int8(settings: Settings, target: Path) -> str:
    """Quantize with nncf, or take the file that was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    from mineral_export.precision.int8 import to_int8

    pixels, what = _calibration(settings)
    quantized = to_int8(settings.model("float32"), target, pixels, for_engine="tensorrt", force=True)
    return _summary(quantized, len(pixels), what)


def _float8(settings: Settings, target: Path) -> str:
    """Quantize with ModelOpt, or take the file that was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    from mineral_export.precision.fp8 import to_fp8

    pixels, what = _calibration(settings)
    return _summary(to_fp8(settings.model("float32"), target, pixels, force=True), len(pixels), what)


def _summary(quantized: Quantized, count: int, what: str) -> str:
    return (
        f"{quantized.exported.size / 1e6:.0f} MB, {quantized.rounded} of {quantized.layers} layers, the rest "
        f"{quantized.rest}, calibrated with {count} {what}: {quantized.exported.parity}"
    )


def _brought_graph(settings: Settings, target: Path) -> str:
    """Copy a file of the same weights that was quantized elsewhere; empty if there is none."""
    for folder in (settings.wheels, settings.out):  # the second holds what came in pieces
        if folder is not None and (folder / target.name).is_file():
            shutil.copyfile(folder / target.name, target)
            return f"brought along, {target.stat().st_size / 1e6:.0f} MB"
    return ""


def _calibration(settings: Settings) -> tuple[Any, str]:
    from mineral_batch.model.onnx_file import read_contract

    return subjects.images(settings, read_contract(settings.model("float32")), settings.sizes.calibration)
