"""The native TensorRT backend without an engine: does it deliver every byte, and how fast?"""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from math import prod
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Sizes


def native_backend(sizes: Sizes, record: Record, *, through: str) -> None:
    """Check the native backend (`copied_bytes`), in the row `native_backend_through_...`.

    Args:
        sizes: of the run.
        record: of the stage.
        through: `pycuda`, or `cuda-core`, which is used without pycuda.
    """
    row = f"native_backend_through_{through}"
    if sizes.dry:
        record.left_out(row, "there is no GPU in a dry run")
        return
    if record.has(row):
        return
    if through == "cuda-core":
        sys.modules["pycuda.driver"] = None  # type: ignore[assignment]
    try:
        record.save(**{row: copied_bytes(batch=64, rounds=40)})
    except Exception as error:  # the stage's other measurements stand
        record.failed(row, error)


def copied_bytes(batch: int, rounds: int) -> str:
    """Run the native backend with a copy on the GPU in place of the engine, so that its output is known.

    Page-locked batches, two lanes, CUDA graphs and padding are those of `predict --backend tensorrt`.

    Args:
        batch: images at once.
        rounds: repetitions of two full batches, one with an image less and one of a single image.

    Raises:
        ValueError: if the output is wrong.
    """
    import numpy as np

    from mineral_batch.cuda.probe import gpus
    from mineral_batch.engines.tensorrt.engine import TensorRtEngine
    from mineral_batch.engines.tensorrt.library import Library

    record = copying_record(batch)
    labels = len(record.contract.labels)
    library = Library("tensorrt", copying_library(record))
    backend = TensorRtEngine(library, gpus()[0], record, b"no engine", None)
    try:
        batches = [backend.buffer(count) for count in (batch, batch, batch - 1, 1)]
        for index, pixels in enumerate(batches):
            pixels[:] = np.random.default_rng(index).integers(0, 256, pixels.shape, dtype=np.uint8)
        wanted = [pixels.reshape(len(pixels), -1)[:, : 4 * labels] for pixels in batches]
        start = time.perf_counter()
        with ThreadPoolExecutor(backend.workers) as threads:
            outputs = list(threads.map(backend.infer, batches * rounds))
        seconds = time.perf_counter() - start
        pairs = zip(wanted * rounds, outputs, strict=True)
        wrong = sum(not np.array_equal(expected, output.view(np.uint8)) for expected, output in pairs)
        if wrong:
            raise ValueError(f"output WRONG: {wrong} of {len(outputs)} batches, {backend.device}")
        moved = rounds * sum(pixels.nbytes for pixels in batches)
        return f"{moved / seconds / 1e9:.1f} GB/s in, {backend.device}, output right"
    finally:
        backend.close()


def copying_record(batch: int) -> Any:
    """Describe an engine whose output is the first bytes of each image of 384 pixels."""
    from mineral_batch.engines.tensorrt.plan import EngineRecord, Profile
    from mineral_batch.minerals import MINERALS
    from mineral_batch.model.contract import InputSpec, ModelContract

    return EngineRecord(
        contract=ModelContract(MINERALS, (0.5,) * len(MINERALS), InputSpec(384, 384), name="a copy"),
        source="none.onnx",
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(b"no engine").hexdigest(),
        runtime="tensorrt",
        version="0.0",
        cuda="",
        gpu="",
        compute_capabilities=(),
        precision="copied bytes",
        products={},
        layers={},
        layers_from="engine",
        profile=Profile(batch, batch, batch),
        inputs={},
        outputs={},
        rebuild="",
    )


class _CopyingContext:
    """Stands in for an execution context: copies the first bytes of each image."""

    def __init__(self) -> None:
        self._addresses: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        from mineral_batch.minerals import MINERALS

        driver: Any = importlib.import_module("cuda.bindings.driver")
        copy = driver.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = self._addresses["pixels"], prod(self._shape[1:])
        copy.dstDevice, copy.dstPitch = self._addresses["probabilities"], 4 * len(MINERALS)
        copy.WidthInBytes, copy.Height = 4 * len(MINERALS), self._shape[0]
        (result,) = driver.cuMemcpy2DAsync(copy, stream)
        return int(result) == 0


class _CopyingEngine:
    """Stands in for an engine; see `EngineRecord.contract`."""

    num_io_tensors = 2

    def __init__(self, contract: Any) -> None:
        self._shapes = {"pixels": (-1, *contract.input.shape), "probabilities": (-1, len(contract.labels))}

    def get_tensor_name(self, index: int) -> str:
        return list(self._shapes)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "pixels" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="UINT8" if name == "pixels" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def create_execution_context(self) -> _CopyingContext:
        return _CopyingContext()


def copying_library(record: Any) -> ModuleType:
    """Return what the native backend calls of TensorRT, with a copy of the first bytes of each image as the engine."""
    module = ModuleType("copying")
    module.__dict__.update(
        __version__="0.0",
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: _CopyingEngine(record.contract)),
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    return module
