"""What the chip can do at most, and the native backend's CUDA layer without an engine."""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from clock import measured
from common import line

if TYPE_CHECKING:
    from common import Record, Sizes

# How the matrix units add up FP8: in fewer bits than FP32, or copied to FP32 every few products.
_SUMS = {"float8_sums_in_fewer_bits": True, "float8_sums_in_float32": False}


def matrix_products(sizes: Sizes, record: Record) -> None:
    """Tera-operations a second of square matrix products in each type that the chip multiplies."""
    for name, product in _products(sizes).items():
        if record.has(f"matrix_{name}_tflops"):
            continue
        try:
            record.save(**{f"matrix_{name}_tflops": 2 * sizes.matrix**3 / measured(product(), sizes) / 1e12})
        except Exception as error:  # the others are still to be measured
            if name.startswith(("int8", "float8")):  # not every chip, nor every PyTorch, has products of these
                record.left_out(f"matrix_{name}_tflops", line(error))
            else:
                record.failed(f"matrix_{name}_tflops", error)
    eight = [record.values[f"matrix_{name}_tflops"] for name in _SUMS if record.has(f"matrix_{name}_tflops")]
    if eight:  # what bounds a row of FP8 is the larger: its engine may add either way
        record.save(matrix_float8_tflops=max(eight))


def _products(sizes: Sizes) -> dict[str, Any]:
    import torch

    def filled(kind: Any) -> Any:
        numbers = torch.randn(sizes.matrix, sizes.matrix, device=sizes.device)
        return (numbers * 30).to(kind) if kind == torch.int8 else numbers.to(kind)

    def plain(kind: Any) -> Any:
        left, right = filled(kind), filled(kind)
        return lambda: left @ right

    def eight_bits() -> Any:
        left, right = filled(torch.int8), filled(torch.int8).t()
        return lambda: torch._int_mm(left, right)

    def float8(is_fast: bool) -> Any:
        left, right = filled(torch.float8_e4m3fn), filled(torch.float8_e4m3fn).t()
        one = torch.ones((), device=sizes.device)
        options: dict[str, Any] = {"out_dtype": torch.bfloat16, "use_fast_accum": is_fast}
        return lambda: torch._scaled_mm(left, right, one, one, **options)

    kinds = ("float16", "bfloat16", "float32")
    halves = {name: partial(plain, getattr(torch, name)) for name in kinds}
    return {**halves, "int8": eight_bits, **{name: partial(float8, is_fast) for name, is_fast in _SUMS.items()}}


def copies(sizes: Sizes, record: Record) -> None:
    """Gigabytes a second to, from and on the GPU."""
    count = sizes.copy_mib << 20
    for name, make in {"to_gpu": _to_gpu, "from_gpu": _from_gpu, "on_gpu_read_and_written": _on_gpu}.items():
        row = f"copy_{name}_gb_per_s"
        if record.has(row):
            continue
        try:
            seconds = measured(make(count, sizes), sizes)
        except Exception as error:  # the others are still to be measured
            record.failed(row, error)
        else:
            record.save(**{row: count * (2 if make is _on_gpu else 1) / seconds / 1e9})


def _to_gpu(count: int, sizes: Sizes) -> Any:
    device, host = _device(count, sizes), _host(count, sizes)
    return lambda: device.copy_(host, non_blocking=True)


def _from_gpu(count: int, sizes: Sizes) -> Any:
    device, host = _device(count, sizes), _host(count, sizes)
    return lambda: host.copy_(device, non_blocking=True)


def _on_gpu(count: int, sizes: Sizes) -> Any:
    device, other = _device(count, sizes), _device(count, sizes)
    return lambda: other.copy_(device)


def _device(count: int, sizes: Sizes) -> Any:
    import torch

    return torch.zeros(count, dtype=torch.uint8, device=sizes.device)


def _host(count: int, sizes: Sizes) -> Any:
    import torch

    return torch.zeros(count, dtype=torch.uint8, pin_memory=not sizes.dry)


def native_backend(sizes: Sizes, record: Record, *, through: str) -> None:
    """What `copied_answers` says, in the row `native_backend_through_...`.

    Args:
        sizes: of the run.
        record: of the stage.
        through: `pycuda`, or `driver` for the driver's library alone, as where pycuda is not installed.
    """
    row = f"native_backend_through_{through}"
    if sizes.dry:
        record.left_out(row, "there is no GPU in a dry run")
        return
    if record.has(row):
        return
    if through == "driver":
        sys.modules["pycuda.driver"] = None  # type: ignore[assignment]
    try:
        record.save(**{row: copied_answers(batch=64, rounds=40)})
    except Exception as error:  # what else the stage measures stands
        record.failed(row, error)


def copied_answers(batch: int, rounds: int) -> str:
    """The native backend as it is, but for the engine: a copy on the GPU takes its place, whose answers are known.

    Page-locked batches, two lanes, CUDA graphs and padding are those of `predict --backend tensorrt`.

    Args:
        batch: pictures at once.
        rounds: how often two full batches, one with a picture less and one of a single picture are given.

    Raises:
        ValueError: if an answer is wrong.
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
        pictures = [backend.buffer(count) for count in (batch, batch, batch - 1, 1)]
        for index, pixels in enumerate(pictures):
            pixels[:] = np.random.default_rng(index).integers(0, 256, pixels.shape, dtype=np.uint8)
        wanted = [pixels.reshape(len(pixels), -1)[:, : 4 * labels] for pixels in pictures]
        start = time.perf_counter()
        with ThreadPoolExecutor(backend.workers) as threads:
            answers = list(threads.map(backend.infer, pictures * rounds))
        seconds = time.perf_counter() - start
        pairs = zip(wanted * rounds, answers, strict=True)
        wrong = sum(not np.array_equal(given, answer.view(np.uint8)) for given, answer in pairs)
        if wrong:
            raise ValueError(f"answers WRONG: {wrong} of {len(answers)} batches, {backend.device}")
        moved = rounds * sum(pixels.nbytes for pixels in pictures)
        return f"{moved / seconds / 1e9:.1f} GB/s in, {backend.device}, answers right"
    finally:
        backend.close()


def copying_record(batch: int) -> Any:
    """The description of an engine that answers with the first bytes of each picture of 384 pixels."""
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
    """In the place of an execution context: its work is one copy of the first bytes of each picture."""

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
    """In the place of an engine; see `EngineRecord.contract`."""

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
    """What the native backend calls of TensorRT, with a copy of the first bytes of each picture as the engine."""
    module = ModuleType("copying")
    module.__dict__.update(
        __version__="0.0",
        ILogger=type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0}),
        Runtime=lambda _: SimpleNamespace(deserialize_cuda_engine=lambda _: _CopyingEngine(record.contract)),
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    return module
