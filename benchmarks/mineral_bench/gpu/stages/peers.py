"""PyTorch and ONNX Runtime as people use them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mineral_bench.gpu.clock import by_batch
from mineral_bench.gpu.packages import is_there
from mineral_bench.gpu.runners import onnx_runtime, pytorch
from mineral_bench.gpu.stages.rows import try_row

if TYPE_CHECKING:
    from mineral_bench.gpu.clock import Runner
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def peers(settings: Settings, record: Record) -> None:
    """Measure what people use otherwise, in the same run: on the device by batch, and end to end with a DataLoader."""
    few = settings.sizes.few_batches
    ways: dict[str, Runner] = {
        f"torch eager, {name}": partial(pytorch.on_device, is_half=half) for name, half in _KINDS
    }
    by_batch(settings, record, ways, few)
    for folder in settings.sizes.photos:
        _loaded(settings, record, f"DataLoader + torch eager, half, {folder}", folder, is_half=True)
    _loaded(settings, record, "DataLoader + torch eager, AMP, 384", "384", is_half=False)
    if settings.model("float16").is_file():
        plain: dict[str, Runner] = {
            "ONNX Runtime as it comes, FP16": partial(onnx_runtime.as_it_comes, model=settings.model("float16"))
        }
        by_batch(settings, record, plain, few)
    else:
        record.left_out("ONNX Runtime as it comes, FP16 ended", "needs the stage models")


#: Name in the row, and whether PyTorch's weights are FP16.
_KINDS = (("half", True), ("AMP", False))


def _loaded(settings: Settings, record: Record, row: str, folder: str, **options: bool) -> None:
    try_row(record, row, partial(pytorch.data_loader, settings, folder, **options))


def compiled(settings: Settings, record: Record) -> None:
    """Measure torch.compile, which takes long before the first output: on the device by batch, and end to end."""
    few = settings.sizes.few_batches
    half, amp = (
        {f"torch.compile, {name}": partial(pytorch.on_device, is_half=is_half, is_compiled=True)}
        for name, is_half in _KINDS
    )
    by_batch(settings, record, half, few[:1])
    _loaded(settings, record, "DataLoader + torch.compile, half, 384", "384", is_half=True, is_compiled=True)
    by_batch(settings, record, half, few)
    by_batch(settings, record, amp, few[:1])
    if is_there("torch_tensorrt"):
        by_batch(settings, record, {"torch-tensorrt": pytorch.torch_tensorrt}, few[:1])
    else:
        record.left_out("torch-tensorrt ended", "it is not installed")
