"""TensorRT's own runtime against a recorded stand-in of TensorRT, pycuda and the driver: order, shapes, lifetimes.

Everything is tried with pycuda and without it, on the driver's library alone. The stand-in's streams run nothing until
they are waited for, its memory is known by its address, and whatever is used without a context, after it was freed or
before it was waited for is an error. It says nothing about a real GPU.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, ContractError, Predictor
from mineral_batch._onnx_file import graph_digest, write_contract
from mineral_batch.backends import cuda_driver, open_backend
from mineral_batch.backends import tensorrt as backend_module
from mineral_batch.backends.tensorrt_build import Built, Layers, inspected
from mineral_batch.backends.tensorrt_engine import (
    EngineRecord,
    Profile,
    read_record,
    sidecar_path,
    write_engine,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mineral_batch import ModelContract

PLAN = b"the plan"


class CudaError(Exception):
    """pycuda's."""


class Machine:
    """A GPU that only exists here."""

    def __init__(self, contract: ModelContract) -> None:
        self.log: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.capturing: dict[int, list[Callable[[], None]]] = {}
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.pinned: list[Any] = []
        self.contexts = threading.local()
        self.layer = ""
        self.opened: list[Any] = []
        self.retained = 0
        self.engine_contexts = 0
        self.can_capture = True
        self.is_capturable = True
        self.most_contexts = 1000
        self.page_lock_fails = False
        self.starts = True
        self.fails = False
        self.loads = True
        self.contract = contract
        self.labels = len(contract.labels)
        self._last = 0x1000

    def open(self, engine: Path, **options: Any) -> Any:
        """Closed at the end of the test, if not before."""
        self.opened.append(backend := open_backend(engine, "tensorrt", **options))
        return backend

    def address(self) -> int:
        self._last += 0x1000
        return self._last

    @property
    def stack(self) -> list[Any]:
        """The driver's, of this thread."""
        found: list[Any] = self.contexts.__dict__.setdefault("stack", [])
        return found

    def say(self, what: str) -> None:
        assert self.stack, f"{what} without a context in this thread"
        self.log.append(what)

    def new_stream(self, flags: int) -> int:
        self.say("stream")
        assert flags == 1, "it waits for the default stream, and breaks what torch does there during a capture"
        at = self.address()
        self.queues[at] = []
        return at

    def new_memory(self, size: int) -> int:
        self.say(f"allocate {size}")
        at = self.address()
        self.memory[at] = np.full(size, 77, np.uint8)
        return at

    def to_gpu(self, memory: int, array: np.ndarray, stream: int) -> None:
        def copy() -> None:
            self.memory[memory][: array.nbytes] = array.reshape(-1)

        self.say(f"to GPU {array.nbytes}")
        self.enqueue(stream, copy)

    def from_gpu(self, array: np.ndarray, memory: int, stream: int) -> None:
        def copy() -> None:
            array.reshape(-1).view(np.uint8)[:] = self.memory[memory][: array.nbytes]

        self.say(f"from GPU {array.nbytes}")
        self.enqueue(stream, copy)

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        self.capturing.get(stream, self.queues[stream]).append(work)

    def wait(self, stream: int) -> None:
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()

    # The model: each label's answer is the mean of the picture, divided by the label's number.
    def compute(self, pixels: int, answers: int, shape: tuple[int, ...]) -> None:
        batch = self.memory[pixels].reshape(shape)
        self.memory[answers].view(np.float32).reshape(shape[0], -1)[:] = expected(batch, self.labels)


def expected(batch: np.ndarray, labels: int) -> np.ndarray:
    return (batch.reshape(len(batch), -1).mean(axis=1)[:, None] / 255 / np.arange(1, labels + 1)).astype(np.float32)


def fake_pycuda(machine: Machine) -> ModuleType:  # noqa: C901 - a module in one function
    driver = ModuleType("pycuda.driver")

    class Context:
        def __init__(self) -> None:
            self.thread = threading.get_ident()

        def push(self) -> None:
            machine.stack.append(self)

        @staticmethod
        def pop() -> None:
            machine.stack.pop()

        @staticmethod
        def synchronize() -> None:
            machine.say("wait for all")

        def detach(self) -> None:
            """As pycuda 2026.1 does: it is for contexts that their release pops, and only in their own thread."""
            if threading.get_ident() == self.thread:
                machine.stack.append(self)
                machine.retained -= 1

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        def retain_primary_context(self) -> Context:
            machine.retained += 1
            return Context()

    class Stream:
        def __init__(self, flags: int = 0) -> None:
            self.handle = machine.new_stream(flags)

        def synchronize(self) -> None:
            machine.say("wait")
            machine.wait(self.handle)

        def __del__(self) -> None:
            machine.say("destroy stream")

    class Memory:
        def __init__(self, size: int) -> None:
            self.at = machine.new_memory(size)

        def __int__(self) -> int:
            return self.at

        def free(self) -> None:
            machine.say("free")
            del machine.memory[self.at]

    def memset_d8(memory: Memory, value: int, size: int) -> None:
        machine.memory[int(memory)][:size] = value

    def to_gpu(memory: Memory, array: np.ndarray, stream: Stream) -> None:
        assert array.flags.c_contiguous
        if machine.fails:
            raise CudaError("cuMemcpyHtoDAsync failed: CUDA error 700, an illegal memory access was encountered")
        machine.to_gpu(int(memory), array, stream.handle)

    def from_gpu(array: np.ndarray, memory: Memory, stream: Stream) -> None:
        machine.from_gpu(array, int(memory), stream.handle)

    for name, value in {
        "init": lambda: None,
        "Device": Device,
        "Context": Context,
        "Stream": Stream,
        "mem_alloc": Memory,
        "memset_d8": memset_d8,
        "memcpy_htod_async": to_gpu,
        "memcpy_dtoh_async": from_gpu,
        "Error": CudaError,
    }.items():
        setattr(driver, name, value)
    return driver


def fake_driver(machine: Machine) -> SimpleNamespace:  # noqa: C901 - a module in one function
    """libcuda."""

    def done(*_: Any) -> int:
        return 0

    def give(pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 0

    def allocate(pointer: Any, size: Any, flags: Any) -> int:
        if machine.page_lock_fails:
            return 2
        machine.pinned.append(memory := ctypes.create_string_buffer(size.value))
        return give(pointer, ctypes.addressof(memory))

    def free_page_locked(address: Any) -> int:
        machine.pinned = [memory for memory in machine.pinned if ctypes.addressof(memory) != address.value]
        return 0

    def attribute(pointer: Any, which: Any, device: Any) -> int:
        return give(pointer, {75: 8, 76: 9}[which.value])

    def name(buffer: Any, size: Any, device: Any) -> int:
        buffer.value = b"NVIDIA L4"
        return 0

    def retain(pointer: Any, device: Any) -> int:
        machine.retained += 1
        return give(pointer, 1)

    def release(device: Any) -> int:
        machine.retained -= 1
        return 0

    def push(context: Any) -> int:
        machine.stack.append("context")
        return 0

    def pop(pointer: Any) -> int:
        machine.stack.pop()
        return 0

    def wait_for_all() -> int:
        machine.say("wait for all")
        return 0

    def synchronize(stream: Any) -> int:
        machine.say("wait")
        machine.wait(stream.value)
        return 0

    def destroy_stream(stream: Any) -> int:
        machine.say("destroy stream")
        del machine.queues[stream.value]
        return 0

    def memset(memory: Any, value: Any, size: Any) -> int:
        machine.memory[memory.value][: size.value] = value.value
        return 0

    def bytes_at(address: Any, size: Any) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size.value).from_address(address.value))

    def to_gpu(memory: Any, source: Any, size: Any, stream: Any) -> int:
        if machine.fails:
            return 700
        machine.to_gpu(memory.value, bytes_at(source, size), stream.value)
        return 0

    def from_gpu(target: Any, memory: Any, size: Any, stream: Any) -> int:
        machine.from_gpu(bytes_at(target, size), memory.value, stream.value)
        return 0

    def free(memory: Any) -> int:
        machine.say("free")
        del machine.memory[memory.value]
        return 0

    def begin(stream: Any, mode: Any) -> int:
        machine.say("capture")
        if not machine.can_capture:
            return 900
        machine.capturing[stream.value] = []
        return 0

    def end(stream: Any, pointer: Any) -> int:
        machine.graphs[at := machine.address()] = machine.capturing.pop(stream.value)
        return give(pointer, at)

    def launch(graph: Any, stream: Any) -> int:
        machine.say("launch")
        for work in machine.graphs[graph.value]:
            machine.enqueue(stream.value, work)
        return 0

    def instantiate(pointer: Any, graph: Any, flags: Any) -> int:
        machine.graphs[at := machine.address()] = machine.graphs[graph.value]
        return give(pointer, at)

    def destroy(graph: Any) -> int:
        machine.say("destroy graph")
        del machine.graphs[graph.value]
        return 0

    return SimpleNamespace(
        cuDeviceGetCount=lambda pointer: give(pointer, 1),
        cuDriverGetVersion=lambda pointer: give(pointer, 13000),
        cuDeviceGet=lambda pointer, index: give(pointer, 0),
        cuDeviceGetName=name,
        cuDeviceGetAttribute=attribute,
        cuDeviceTotalMem_v2=lambda pointer, device: give(pointer, 24 << 30),
        cuDevicePrimaryCtxRetain=retain,
        cuDevicePrimaryCtxRelease_v2=release,
        cuCtxPushCurrent_v2=push,
        cuCtxPopCurrent_v2=pop,
        cuCtxSynchronize=wait_for_all,
        cuMemHostAlloc=allocate,
        cuMemFreeHost=free_page_locked,
        cuStreamCreate=lambda pointer, flags: give(pointer, machine.new_stream(flags.value)),
        cuStreamSynchronize=synchronize,
        cuStreamDestroy_v2=destroy_stream,
        cuMemAlloc_v2=lambda pointer, size: give(pointer, machine.new_memory(size.value)),
        cuMemsetD8_v2=memset,
        cuMemcpyHtoDAsync_v2=to_gpu,
        cuMemcpyDtoHAsync_v2=from_gpu,
        cuMemFree_v2=free,
        cuStreamBeginCapture_v2=begin,
        cuStreamEndCapture=end,
        cuGraphInstantiateWithFlags=instantiate,
        cuGraphLaunch=launch,
        cuGraphDestroy=destroy,
        cuGraphExecDestroy=destroy,
    )


def fake_tensorrt(machine: Machine) -> ModuleType:  # noqa: C901 - a module in one function
    trt = ModuleType("tensorrt")
    height, width, _ = machine.contract.input.shape

    class ILogger:
        ERROR, INTERNAL_ERROR = "error", "internal error"

        def log(self, severity: Any, message: str) -> None:
            raise NotImplementedError

    class Context:
        def __init__(self) -> None:
            self.at: dict[str, int] = {}
            self.shape: tuple[int, ...] = ()

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shape = shape
            return name == "pixels" and shape[1:] == (height, width, 3)

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.at[name] = address
            return True

        def is_stream_capturable(self, stream: int) -> bool:
            return machine.is_capturable

        def execute_async_v3(self, stream: int) -> bool:
            machine.say("execute")
            machine.enqueue(stream, lambda: machine.compute(self.at["pixels"], self.at["probabilities"], self.shape))
            return True

    class Engine:
        num_io_tensors = 2

        def get_tensor_name(self, index: int) -> str:
            return ("pixels", "probabilities")[index]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name == "pixels" else "out"

        def get_tensor_dtype(self, name: str) -> Any:
            return SimpleNamespace(name="UINT8" if name == "pixels" else "FLOAT")

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return (-1, height, width, 3) if name == "pixels" else (-1, machine.labels)

        def create_runtime_config(self) -> SimpleNamespace:
            return SimpleNamespace(dynamic_shapes_kernel_specialization_strategy="lazy")

        def create_execution_context(self, config: Any = None) -> Context | None:
            machine.say("context" if config is None else f"context, {vars(config)}")
            machine.engine_contexts += 1
            return Context() if machine.engine_contexts <= machine.most_contexts else None

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger
            if not machine.starts:
                logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            machine.say("load engine")
            if machine.loads:
                return Engine()
            self.logger.log(ILogger.ERROR, "no\nluck")
            return None

    for name, value in {
        "__version__": "10.13.3.9",
        "ILogger": ILogger,
        "Runtime": Runtime,
        "TensorIOMode": SimpleNamespace(INPUT="in"),
    }.items():
        setattr(trt, name, value)
    return trt


@pytest.fixture(params=["pycuda", "the driver's library"])
def machine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, contract: ModelContract, tmp_path: Path
) -> Iterator[Machine]:
    machine = Machine(contract)
    machine.layer = request.param
    package = driver = None
    if request.param == "pycuda":
        package, driver = ModuleType("pycuda"), fake_pycuda(machine)
        package.driver = driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(machine))
    library = fake_driver(machine)
    monkeypatch.setattr(cuda_driver, "_driver", lambda: library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield machine
    for backend in machine.opened:
        backend.close()


def record(contract: ModelContract, **changes: Any) -> EngineRecord:
    made = EngineRecord(
        contract=contract,
        source="model.onnx",
        onnx_sha256="0" * 64,
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        runtime="tensorrt",
        version="10.13.3.9",
        cuda="13.0",
        gpu="NVIDIA L4",
        compute_capabilities=("8.9",),
        precision="float16",
        products={"float16": 9},
        layers={"float16": 20, "float32": 3},
        layers_from="engine",
        profile=Profile(1, 4, 8),
        inputs={"pixels": "uint8 (-1, 24, 32, 3)"},
        outputs={"probabilities": "float32 (-1, 5)"},
        rebuild="mineral-export trt model.onnx -o model.plan",
    )
    return replace(made, **changes)


@pytest.fixture
def engine(tmp_path: Path, contract: ModelContract) -> Path:
    path = tmp_path / "model.plan"
    write_engine(path, PLAN, record(contract))
    return path


def pictures(count: int, contract: ModelContract) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, *contract.input.shape)).astype(np.uint8)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises((BackendError, ContractError)) as caught:
        open_backend(path, "tensorrt", **options)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_record_is_read_back_as_it_was_written(engine: Path, contract: ModelContract) -> None:
    assert read_record(engine) == record(contract)
    assert engine.read_bytes() == PLAN, "plain plan bytes, which trtexec and Triton load"


def test_an_engine_that_cannot_be_described_is_not_written(tmp_path: Path, contract: ModelContract) -> None:
    path = tmp_path / "model.plan"
    sidecar_path(path).mkdir()
    with pytest.raises(BackendError, match="cannot write the engine"):
        write_engine(path, PLAN, record(contract))
    assert not [found for found in tmp_path.iterdir() if found.is_file()]


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 11])
def test_every_picture_gets_its_answer_whatever_the_batch(
    machine: Machine, engine: Path, contract: ModelContract, batch: int
) -> None:
    backend = machine.open(engine)
    pixels = pictures(batch, contract)
    for _ in range(3):  # the other lane, then the first one again, with what lay there before
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    backend.close()


def test_a_batch_is_one_copy_one_launch_and_one_wait(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.infer(pictures(4, contract))
    assert machine.log == [f"to GPU {4 * 24 * 32 * 3}", "launch", "wait"]
    machine.log.clear()
    backend.infer(pictures(2, contract))
    assert machine.log == [f"to GPU {2 * 24 * 32 * 3}", "launch", "wait"], "a smaller batch copies only its pictures"


def test_everything_is_allocated_when_it_is_opened(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine, batch_size=8)
    sizes = [line for line in machine.log if line.startswith("allocate")]
    assert sizes == [f"allocate {8 * 24 * 32 * 3}", f"allocate {8 * 5 * 4}"] * backend.workers
    first = machine.log.index("capture")
    assert machine.log.index("execute") < machine.log.index("wait") < first, "run once before it is recorded"
    for count in (8, 3, 20):
        backend.infer(pictures(count, contract))
    assert [line for line in machine.log if line.startswith("allocate")] == sizes


def test_closing_gives_everything_back_and_graphs_before_their_memory(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.close()
    backend.close()
    assert machine.log == ["wait", "destroy graph", "free", "free", "destroy stream"] * backend.workers
    assert (machine.memory, machine.graphs, machine.stack) == ({}, {}, [])
    assert machine.retained == len(machine.pinned), "page-locked memory holds the context for itself"


def test_closing_from_another_thread_gives_the_context_back_too(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(backend.close).result()
        assert pool.submit(lambda: machine.stack).result() == machine.stack == []
    assert (machine.memory, machine.retained) == ({}, len(machine.pinned))


def test_the_threads_own_context_is_current_again_after_closing(machine: Machine, engine: Path) -> None:
    machine.stack.append("torch's, on another GPU")
    machine.open(engine).close()
    assert machine.stack == ["torch's, on another GPU"]


def test_a_gpu_with_too_little_memory_for_the_second_lane_keeps_nothing(machine: Machine, engine: Path) -> None:
    machine.most_contexts = 1
    assert "choose a smaller --batch-size" in refused(engine)
    assert (machine.memory, machine.graphs, machine.retained) == ({}, {}, len(machine.pinned))
    assert machine.log.count("destroy stream") == machine.log.count("stream")


def test_page_locked_memory_that_is_not_to_be_had_is_one_line(machine: Machine, engine: Path) -> None:
    machine.page_lock_fails = True
    assert refused(engine).startswith("tensorrt does not open on GPU 0 (NVIDIA L4): the NVIDIA driver answers")
    assert (machine.memory, machine.retained) == ({}, 0)
    assert machine.log.count("destroy stream") == machine.log.count("stream")


def test_two_threads_use_two_lanes(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    batches = [pictures(4, contract) + np.uint8(shift) for shift in range(20)]
    with ThreadPoolExecutor(backend.workers) as pool:
        answers = list(pool.map(backend.infer, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch, 5), rtol=1e-6)


def test_without_graphs_the_answers_are_the_same(machine: Machine, engine: Path, contract: ModelContract) -> None:
    machine.can_capture = False
    backend = machine.open(engine)
    pixels = pictures(6, contract)
    np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert "without CUDA graph" in backend.device


def test_an_engine_that_says_it_cannot_be_captured_is_not(machine: Machine, engine: Path) -> None:
    machine.is_capturable = False
    assert "without CUDA graph" in machine.open(engine).device
    assert "capture" not in machine.log


def test_tensorrt_for_rtx_compiles_the_kernels_of_a_batch_before_they_are_recorded(
    machine: Machine, engine: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = fake_tensorrt(machine)
    library.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    write_engine(engine, PLAN, record(contract, runtime="tensorrt-rtx"))
    backend = machine.open(engine)
    made = [line for line in machine.log if line.startswith("context")]
    assert made == ["context, {'dynamic_shapes_kernel_specialization_strategy': 'eager'}"] * backend.workers


def test_a_failure_of_cuda_is_one_line_and_frees_the_lane(
    machine: Machine, engine: Path, contract: ModelContract
) -> None:
    backend = machine.open(engine)
    machine.fails = True
    with pytest.raises(BackendError, match="CUDA error 700"):
        backend.infer(pictures(4, contract))
    machine.fails = False
    pixels = pictures(4, contract)
    for _ in range(backend.workers):
        np.testing.assert_allclose(backend.infer(pixels), expected(pixels, 5), rtol=1e-6)
    assert not machine.stack, "the context of the thread is as it was"


def test_an_engine_that_does_not_load_leaves_nothing_behind(machine: Machine, engine: Path) -> None:
    machine.loads = False
    assert "no luck; build it again: mineral-export trt" in refused(engine)
    assert (machine.memory, machine.retained, machine.stack) == ({}, 0, [])


def test_a_tensorrt_that_does_not_start_is_one_line(machine: Machine, engine: Path) -> None:
    machine.starts = False
    message = refused(engine)
    assert "does not start: CUDA initialization failure with error: 35; see whether the NVIDIA driver" in message
    assert machine.retained == 0


def test_it_says_what_it_is(machine: Machine, engine: Path, contract: ModelContract) -> None:
    backend = machine.open(engine)
    assert backend.device == f"GPU 0 (NVIDIA L4), float16, CUDA by {machine.layer}"
    assert backend.version == "tensorrt 10.13.3.9, float16"
    assert (backend.contract, backend.batch_size, backend.workers) == (contract, 4, 2)
    assert backend.buffer(3).shape == (3, 24, 32, 3)


def test_predict_feeds_it(machine: Machine, engine: Path, album: Path) -> None:
    with Predictor(engine, backend="tensorrt") as predictor:
        results = list(predictor.predict([album]))
    assert len(results) == 11
    assert len({float(result.probabilities[0]) for result in results}) == 11


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "10.14.0.1"}, "was built by tensorrt 10.14.0.1, and tensorrt 10.13.3.9 is installed"),
        ({"compute_capabilities": ("9.0", "12.0")}, "compute capability 9.0, 12.0, and NVIDIA L4 has 8.9"),
        ({"engine_sha256": "1" * 64}, "is not the engine that model.plan.json describes"),
    ],
)
def test_a_foreign_engine_is_refused_with_the_command_that_builds_it(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any], reason: str
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    message = refused(engine)
    assert reason in message
    assert message.endswith("build it again: mineral-export trt model.onnx -o model.plan")
    assert not machine.log, "nothing was loaded"


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_capabilities": ("8.0",), "hardware_compatible": True},
        {"version": "10.12.0.1", "version_compatible": True},
        {"version": "10.12.0.1.post1", "version_compatible": True},
    ],
)
def test_a_compatible_engine_is_taken(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any]
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    machine.open(engine).close()


def test_an_engine_older_than_the_model_beside_it_is_refused(
    machine: Machine, engine: Path, contract: ModelContract, model_path: Path
) -> None:
    source = engine.with_name("model.onnx")
    source.write_bytes(model_path.read_bytes())
    assert "built from another model.onnx" in refused(engine)
    write_engine(engine, PLAN, record(contract, onnx_sha256=graph_digest(source)))
    machine.open(engine).close()


@pytest.mark.parametrize("damage", ["", "{}", '{"schema_version": 9}', "[1]", "\0"])
def test_an_engine_without_a_whole_description_is_refused(machine: Machine, engine: Path, damage: str) -> None:
    sidecar_path(engine).write_text(damage)
    assert "mineral-export trt" in refused(engine)
    sidecar_path(engine).unlink()
    assert "has no description model.plan.json" in refused(engine)


def test_a_batch_outside_the_profile_and_another_precision_are_refused(machine: Machine, engine: Path) -> None:
    assert "takes 1 to 8 pictures at once, not 9" in refused(engine, batch_size=9)
    assert "mineral-export fp16" in refused(engine, precision="float32")


def test_an_onnx_file_is_built_once(
    machine: Machine, model_path: Path, tmp_path: Path, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    class Network:
        def __init__(self, library: Any, source: Path) -> None:
            built.append(source)

        def build(self, options: Any) -> Built:
            return Built(PLAN, Layers({"float32": 1}, {"float32": 8}), {}, {})

    monkeypatch.setattr(backend_module, "Network", Network)
    source = tmp_path / "model.onnx"
    source.write_bytes(model_path.read_bytes())

    def opened(**options: Any) -> Any:
        backend = open_backend(source, "tensorrt", **options)
        backend.close()
        return backend

    assert opened().version.endswith("float32")
    assert machine.retained == len(machine.pinned), "also the context that it was built in is given back"
    opened()
    assert len(built) == 1, "the second time it is read"
    changed = contract.with_thresholds([0.9] * 5)
    write_contract(source, changed)
    assert opened().contract == changed
    assert len(built) == 1, "thresholds do not change the graph"
    opened(batch_size=2)
    assert len(built) == 2, "another batch is another engine"
    kept = next(iter((tmp_path / "cache").rglob("model.plan.json")))
    kept.write_text("{}")
    kept.with_name("model.plan").write_bytes(b"half of it")
    opened()
    opened(batch_size=2)
    assert len(built) == 3, "a damaged one is built anew"


def test_without_a_driver_nothing_of_tensorrt_is_touched(
    engine: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> Any:
        raise cuda_driver.DriverError("no NVIDIA driver: libcuda.so.1: cannot open")

    monkeypatch.setattr(cuda_driver, "_driver", absent)
    for path in (engine, model_path):
        message = refused(path)
        assert "needs an NVIDIA GPU" in message
        assert "install the NVIDIA driver" in message


def test_a_missing_package_is_named(machine: Machine, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert "pip install" in refused(engine)


def test_a_pycuda_that_does_not_load_is_told_and_not_needed(
    machine: Machine, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcurand.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):
        backend = machine.open(engine)
    assert backend.device.endswith("CUDA by the driver's library")
    backend.close()
    assert [entry.getMessage() for entry in caplog.records] == [
        "pycuda does not load (libcurand.so.10: cannot open): going on with the driver's library"
    ]


@pytest.mark.parametrize("error", ["OSError('libnvinfer.so.10: cannot open')", "ImportError('libcudart.so.13')"])
def test_a_tensorrt_without_its_libraries_says_so(
    machine: Machine, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    assert "tensorrt is installed and does not load (lib" in refused(engine)


def test_the_inspectors_words_are_counted_in_both_forms() -> None:
    told = {
        "Layers": [
            {"Name": "a", "Outputs": [{"Format/Datatype": "Half"}]},
            {"Name": "b", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
            {"Name": "c", "Outputs": [{"Format/Datatype": "Float"}]},
            {"Name": "d", "Outputs": [{"Format/Datatype": "Row major Int8 format"}]},
            {"Name": "e", "Outputs": []},
            "only a name",
        ]
    }
    assert inspected(json.dumps(told)) == {"float16": 2, "float32": 1, "int8": 1}
