"""TensorRT's own runtime."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import subjects
from mineral_bench.gpu.clock import Workload
from mineral_bench.gpu.runners.inputs import side_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mineral_bench.gpu.settings import Settings


@contextmanager
def tensorrt(settings: Settings, batch: int, model: Path) -> Iterator[Workload]:
    """Build a TensorRT engine for this batch and run it with TensorRT's own runtime on torch's memory and stream."""
    import tensorrt as trt
    import torch

    from mineral_batch.engines.tensorrt.options import Options
    from mineral_batch.engines.tensorrt.plan import Profile
    from mineral_export.tensorrt import export_engine

    target = model.with_name(f"{model.stem}-{batch}.plan")
    options = Options(Profile(batch, batch, batch), timing_cache=settings.models / "timings")
    # An INT8 or FP8 graph has layers in other types, too.
    precision: Any = "fp16" if model.stem.endswith("float16") else "as-is"
    exported = export_engine(model, target, options, precision=precision, runtime="tensorrt", force=True)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(target.read_bytes())
    context = engine.create_execution_context()
    contract = exported.record.contract
    pixels = subjects.device_noise(contract, batch, "cuda")
    answers = torch.zeros((batch, len(contract.labels)), device="cuda")
    context.set_input_shape("pixels", tuple(pixels.shape))
    context.set_tensor_address("pixels", pixels.data_ptr())
    context.set_tensor_address("probabilities", answers.data_ptr())
    with side_stream() as stream:  # on the default one TensorRT synchronizes more than it must

        def run() -> Any:
            if not context.execute_async_v3(stream.cuda_stream):
                raise RuntimeError("TensorRT did not start the engine")
            return runtime, engine, pixels, answers  # kept alive with the function

        yield Workload(run, notes=str(exported.parity or f"not compared: {exported.why_not}"))
