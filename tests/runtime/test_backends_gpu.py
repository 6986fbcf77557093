"""The GPU backends on recording stand-ins for onnxruntime-gpu and the driver; the sessions compute on the CPU.

What they show: the order of calls, fixed shapes, buffers that are made once, padding, halving, what is computed while
something else is copied, when sessions are destroyed, options and the names of caches. What they cannot show: that CUDA
does as told. Tests marked `gpu` would.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import logging
import sys
import threading
import time
import weakref
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, DataError, Failure, ModelContract, Predictor
from mineral_batch.cuda import device as cuda_driver
from mineral_batch.cuda import staging as uploads
from mineral_batch.cuda.device import DriverError, Gpu
from mineral_batch.engines import onnx_cuda, onnx_tensorrt
from mineral_batch.engines.base import identity
from mineral_batch.engines.device_group import DeviceGroup
from mineral_batch.engines.registry import open_backend
from mineral_batch.model.contract import Numerics
from mineral_batch.model.onnx_file import write_contract
from mineral_batch.results import run as runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

real = pytest.importorskip("onnxruntime")

GPUS = [Gpu(0, "NVIDIA H200", "9.0", 150 << 30), Gpu(1, "NVIDIA H200", "9.0", 150 << 30)]


class DeviceValue:
    """An OrtValue on the GPU: memory that only the calls of ONNX Runtime and the driver reach."""

    def __init__(self, runtime: Runtime, shape: Any, kind: Any, device: str, index: int) -> None:
        assert device == "cuda"
        runtime.forbid_while_capturing("an allocation")
        self.memory = np.full(shape, 77, kind)  # a GPU's memory is not zero to begin with
        self._runtime = runtime
        runtime.calls.append(("allocate", tuple(shape), index))

    def update_inplace(self, array: NDArray[Any]) -> None:
        self._runtime.forbid_while_capturing("a copy")
        assert array.shape == self.memory.shape
        assert array.dtype == self.memory.dtype
        assert array.flags.c_contiguous
        self._runtime.calls.append(("copy", array.ctypes.data))
        self.memory[...] = array

    def data_ptr(self) -> int:
        return self.memory.ctypes.data

    def numpy(self) -> NDArray[Any]:
        return self.memory.copy()


class Binding:
    def bind_ortvalue_input(self, name: str, value: DeviceValue) -> None:
        assert name == "pixels"
        self.pixels = value

    def bind_ortvalue_output(self, name: str, value: DeviceValue) -> None:
        assert name == "probabilities"
        self.probabilities = value


class Session:
    def __init__(self, runtime: Runtime, path: str, options: Any, providers: list[Any]) -> None:
        runtime.calls.append(("session", providers))
        runtime.alive.add(self)
        weakref.finalize(self, runtime.destroy)
        self._has_graph = "1" in (
            providers[0][1].get("enable_cuda_graph"),
            providers[0][1].get("trt_cuda_graph_enable"),
        )
        if runtime.refuse_graphs and self._has_graph:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self._session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._providers = [name for name, _ in providers]
        self._runtime = runtime
        self._has_run = False
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.run = self._session.run
        self.get_provider_graph_assignment_info = self._session.get_provider_graph_assignment_info
        for part in range(runtime.engines):
            if "trt_engine_cache_path" in providers[0][1]:
                (Path(providers[0][1]["trt_engine_cache_path"]) / f"part_{part}.engine").touch()

    def get_providers(self) -> list[str]:
        return self._runtime.really or self._providers

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        batch = len(binding.pixels.memory)
        self._runtime.calls.append(("run", batch))
        self._runtime.threads[id(self)].add(threading.get_ident())
        self._runtime.runs[id(self)] += 1
        if batch > self._runtime.fits:
            raise RuntimeError(self._runtime.out_of_memory)
        if not self._has_run:
            self._has_run = True
            if self._has_graph:
                self._runtime.capture()
        self._runtime.computing()
        binding.probabilities.memory[...] = self._session.run(None, {"pixels": binding.pixels.memory})[0]


class Gate(cuda_driver._Gate):
    """That knows who is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: dict[int, int] = defaultdict(int)  # thread -> how often

    @contextmanager
    def shared(self) -> Iterator[None]:
        with super().shared(), self._counted():
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with super().alone(), self._counted():
            yield

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self.inside[threading.get_ident()] += 1
        try:
            yield
        finally:
            self.inside[threading.get_ident()] -= 1


class Runtime:
    """The module `onnxruntime`, as far as the backends use it."""

    __version__ = "1.99.0"
    SessionOptions = real.SessionOptions

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: dict[int, set[int]] = defaultdict(set)  # session -> threads that ran it
        self.runs: Counter[int] = Counter()  # session -> how often
        self.alive: weakref.WeakSet[Session] = weakref.WeakSet()
        self.fits = 1 << 20
        self.out_of_memory = "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 939524096"
        self.really: list[str] | None = None
        self.refuse_graphs = False
        self.capture_fails = ""
        self.capturing: Callable[[], object] = lambda: None
        self.computing: Callable[[], object] = lambda: None
        self.engines = 1
        self.forbidden: list[str] = []
        self._capturing: int | None = None
        self.OrtValue = self
        self.gate = Gate()

    def capture(self) -> None:
        """In CUDA's global mode: no other thread may allocate, copy or destroy."""
        assert self._capturing is None, "two threads capture"
        self._capturing = threading.get_ident()
        try:
            self.capturing()
        finally:
            self._capturing = None
        if self.capture_fails:
            raise RuntimeError(self.capture_fails)

    def forbid_while_capturing(self, what: str) -> None:
        if self._capturing not in (None, threading.get_ident()):
            self.forbidden.append(what)
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")

    def destroy(self) -> None:
        """What a session's destructor does; one that throws ends the process."""
        if not self.gate.inside[threading.get_ident()]:
            self.forbidden.append("a destruction outside the gate")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: list[Any], **more: Any) -> Session:
        assert more == {"enable_fallback": 0}, "or it makes a session on the processor"
        return Session(self, path, options, providers)

    def ortvalue_from_shape_and_type(self, *arguments: Any) -> DeviceValue:
        return DeviceValue(self, *arguments)

    def preload_dlls(self) -> None:
        self.calls.append(("preload",))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]


class Stream:
    """What is enqueued is done when somebody waits for it, and not before."""

    def __init__(self, gpu: DriverContext) -> None:
        self.work: list[Callable[[], object]] = []
        self._gpu = gpu

    def synchronize(self) -> None:
        self._gpu.require_current()
        if self._gpu.is_broken:
            raise DriverError("cuStreamSynchronize with CUDA error 700")
        while self.work:
            self.work.pop(0)()

    def close(self) -> None:
        assert not self.work


class Memory:
    """Of the GPU, at a true address."""

    def __init__(self, gpu: DriverContext, size: int) -> None:
        self.bytes = np.full(size, 88, np.uint8)
        self._gpu = gpu

    def __int__(self) -> int:
        return self.bytes.ctypes.data

    def free(self) -> None:
        self._gpu.require_current()
        self._gpu.runtime.forbid_while_capturing("to free memory")
        self._gpu.runtime.calls.append(("free",))


class DriverContext:
    """`cuda_driver.Context` of a stand-in GPU."""

    runtime: Runtime
    refuses = ""
    fails = ""
    is_broken = False

    def __init__(self, gpu: Gpu) -> None:
        if self.refuses:
            raise DriverError(self.refuses)
        self._threads: dict[int, int] = defaultdict(int)

    def require_current(self) -> None:
        assert self._threads[threading.get_ident()], "no context is current in this thread"

    @contextmanager
    def current(self) -> Iterator[None]:
        self._threads[threading.get_ident()] += 1
        try:
            yield
        finally:
            self._threads[threading.get_ident()] -= 1

    def stream(self) -> Stream:
        self.require_current()
        return Stream(self)

    def allocate(self, size: int) -> Memory:
        self.require_current()
        self.runtime.forbid_while_capturing("an allocation")
        self.runtime.calls.append(("place", size))
        return Memory(self, size)

    def to_gpu(self, memory: Memory, array: NDArray[Any], stream: Stream) -> None:
        self.require_current()
        self.runtime.forbid_while_capturing("a copy")
        assert array.flags.c_contiguous
        assert array.nbytes <= memory.bytes.nbytes
        if self.fails:
            raise DriverError(self.fails)
        self.runtime.calls.append(("upload", array.ctypes.data))
        stream.work.append(lambda: ctypes.memmove(int(memory), array.ctypes.data, array.nbytes))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        self.require_current()
        self.runtime.forbid_while_capturing("a copy")
        self.runtime.calls.append(("copy", source))
        stream.work.append(lambda: ctypes.memmove(target, source, size))

    def release(self) -> None:
        assert not any(self._threads.values())
        self.runtime.calls.append(("release",))


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    standin = Runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", standin)
    monkeypatch.setattr(cuda_driver, "gpus", lambda: GPUS)
    monkeypatch.setattr(cuda_driver, "page_locked", _no_driver)
    for module in (cuda_driver, onnx_cuda, uploads):
        monkeypatch.setattr(module, "gate", standin.gate)
    monkeypatch.setattr(uploads, "Context", type("Context", (DriverContext,), {"runtime": standin}))
    monkeypatch.setattr(onnx_tensorrt, "tensorrt_version", lambda: "10.16.0")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return standin


@pytest.fixture
def without_uploads(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads.Context, "refuses", "no NVIDIA driver")


def _no_driver(*_: object) -> Any:
    raise DriverError("no NVIDIA driver")


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, 24, 32, 3)).astype(np.uint8)


def expected(model_path: Path, pixels: NDArray[np.uint8]) -> Any:
    session = real.InferenceSession(str(model_path), providers=["CPUExecutionProvider"])
    return session.run(None, {"pixels": pixels})[0]


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_batches_have_one_size_and_go_through_the_same_buffers(model_path: Path, runtime: Runtime, count: int) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    pixels = pictures(count)
    for _ in range(3):
        np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert runtime.of("allocate") == [("allocate", (4, 24, 32, 3), 0), ("allocate", (4, 5), 0)]
    assert runtime.of("place") == [("place", 4 * 24 * 32 * 3)] * 2
    assert {size for _, size in runtime.of("run")} == {4}
    assert len(runtime.of("session")) == 1
    assert len(runtime.of("copy")) == len(runtime.of("upload")) == 3 * -(-count // 4)
    assert len(runtime.of("run")) - 1 == 3 * -(-count // 4), "one to capture the graph"
    backend.close()
    assert (len(runtime.of("free")), len(runtime.of("release")), len(runtime.alive)) == (2, 1, 0)


@pytest.mark.usefixtures("without_uploads")
@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_without_room_for_the_next_batch_they_go_one_after_the_other_and_that_is_said(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    pixels = pictures(count)
    for _ in range(3):
        np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert backend.workers == 1
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 0: no NVIDIA driver: going on slower, with one batch copied and computed after the other"
    ]
    copies = runtime.of("copy")
    assert len(copies) == 3 * -(-count // 4)
    assert (("copy", pixels.ctypes.data) in copies) == (count >= 4), "a full batch is copied from where it is"
    backend.close()


def test_a_full_batch_is_copied_to_the_gpu_from_where_it_is(model_path: Path, runtime: Runtime) -> None:
    pixels = pictures(8)
    open_backend(model_path, "onnx-cuda", batch_size=4).infer(pixels)
    assert runtime.of("upload") == [("upload", pixels[:4].ctypes.data), ("upload", pixels[4:].ctypes.data)]


def test_the_next_batch_is_copied_while_one_is_computed(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    batches = [pictures(4), 255 - pictures(4)]

    def wait_for_the_other() -> None:
        assert _becomes_true(lambda: len(runtime.of("upload")) == 2), "the other batch waits, too"

    runtime.computing = wait_for_the_other
    assert backend.workers == 2
    with ThreadPoolExecutor(backend.workers) as pool:
        answers = list(pool.map(backend.infer, batches))
    for answer, batch in zip(answers, batches, strict=True):
        np.testing.assert_allclose(answer, expected(model_path, batch), rtol=1e-6)


def _becomes_true(condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.001)
    return condition()


def test_many_threads_get_each_their_own_answers(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    batches = [pictures(4)[: 1 + index % 4] // (1 + index) for index in range(12)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for answer, batch in zip(pool.map(backend.infer, batches), batches, strict=True):
                np.testing.assert_allclose(answer, expected(model_path, batch), rtol=1e-6)


def test_memory_is_given_back_when_nobody_uses_it_any_more(runtime: Runtime) -> None:
    places = uploads.Uploads(GPUS[0], (4, 24, 32, 3))
    is_inside, leaves = threading.Event(), threading.Event()

    def use() -> None:
        with places.of(pictures(4)):
            is_inside.set()
            assert leaves.wait(20)

    with ThreadPoolExecutor(2) as pool:
        used = pool.submit(use)
        assert is_inside.wait(20)
        closing = pool.submit(places.close)
        assert not _becomes_true_soon(closing.done)
        assert not runtime.of("free")
        leaves.set()
        used.result()
        closing.result()
    places.close()
    assert (len(runtime.of("free")), len(runtime.of("release"))) == (2, 1)
    with pytest.raises(DriverError, match="has been given back"), places.of(pictures(4)):
        pass


def test_where_one_place_fits_and_not_the_other_it_is_given_back(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocate = uploads.Context.allocate

    def allocate_once(context: Any, size: int) -> Any:
        if runtime.of("place"):
            raise DriverError("cuMemAlloc_v2 with CUDA error 2 (out of memory)")
        return allocate(context, size)

    monkeypatch.setattr(uploads.Context, "allocate", allocate_once)
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    assert backend.workers == 1
    assert (len(runtime.of("free")), len(runtime.of("release"))) == (1, 1)
    np.testing.assert_allclose(backend.infer(pictures(4)), expected(model_path, pictures(4)), rtol=1e-6)


@pytest.mark.parametrize("devices", [[0], [0, 1]])
def test_to_close_twice_does_no_harm(model_path: Path, runtime: Runtime, devices: list[int]) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=devices)
    backend.close()
    backend.close()
    assert len(runtime.of("release")) == len(devices)
    assert not runtime.alive


def test_pictures_of_another_shape_never_reach_the_gpu(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    for wrong in (np.zeros((2, 24, 33, 3), np.uint8), np.zeros((2, 24, 32, 3), np.float32)):
        with pytest.raises(BackendError, match=r"onnx-cuda got .*; it takes uint8"):
            backend.infer(wrong)
    assert not runtime.of("upload")
    assert backend.infer(pictures(4)[:0]).shape == (0, 5)
    mirrored = pictures(4)[:, :, ::-1]
    np.testing.assert_allclose(backend.infer(mirrored), expected(model_path, np.ascontiguousarray(mirrored)), rtol=1e-6)


def test_libraries_are_looked_for_before_the_session(model_path: Path, runtime: Runtime) -> None:
    open_backend(model_path, "onnx-cuda")
    assert [call[0] for call in runtime.calls[:2]] == ["preload", "session"]


@pytest.mark.parametrize(
    "words",
    [
        "Failed to allocate memory for requested buffer",
        "CUDA failure 2: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_out_of_memory_halves_the_batch_and_no_picture_is_lost(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    runtime.out_of_memory = words
    backend = open_backend(model_path, "onnx-cuda", batch_size=12)
    runtime.fits = 3
    pixels = pictures(12)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert [size for _, size in runtime.of("run")] == [12, 12, 6, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert backend.batch_size == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"GPU 0 is out of memory: going on with batches of {batch}" for batch in (6, 3)]
    assert backend.version.endswith("batches of 3")
    assert len(runtime.alive) == 1
    assert not runtime.forbidden


def test_a_gpu_too_small_for_one_picture_is_an_error(model_path: Path, runtime: Runtime) -> None:
    runtime.fits = 0
    with pytest.raises(BackendError, match="too little free memory for one picture") as caught:
        open_backend(model_path, "onnx-cuda", batch_size=2)
    assert not runtime.alive, "though its error is kept"
    assert not runtime.forbidden
    assert caught.value.__cause__ is not None


def test_another_failure_is_no_reason_to_halve(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.fits, runtime.out_of_memory = 0, "an illegal memory access was encountered\nat somewhere.cc:12"
    with pytest.raises(BackendError, match=r"batch of 2: an illegal memory access was encountered$"):
        backend.infer(pictures(2))
    assert [size for _, size in runtime.of("run")] == [2, 2]


def test_memory_that_is_short_from_the_start_is_found_when_the_model_is_opened(
    model_path: Path, runtime: Runtime
) -> None:
    runtime.fits = 3
    assert open_backend(model_path, "onnx-cuda", batch_size=12).batch_size == 3
    assert [size for _, size in runtime.of("run")] == [12, 6, 3]


def test_while_one_gpu_captures_its_graph_the_others_wait(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    runtime.capturing = lambda: time.sleep(0.02)
    pixels = pictures(4)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):  # both run out of memory, and make new sessions, while the other one works
            runtime.fits = max(1, runtime.fits // 2) if runtime.fits < 4 else 2
            answers = list(pool.map(lambda _: group.infer(pixels), range(6)))
    for answer in answers:
        np.testing.assert_allclose(answer, expected(model_path, pixels), rtol=1e-6)
    assert not runtime.forbidden


def test_while_one_gpu_captures_its_graph_no_session_is_destroyed(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=[0])
    captures, ends = threading.Event(), threading.Event()

    def capture() -> None:
        captures.set()
        assert ends.wait(20)

    runtime.capturing = capture
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(open_backend, model_path, "onnx-cuda", devices=[1])
        assert captures.wait(20)
        closing = pool.submit(backend.close)
        assert not _becomes_true_soon(closing.done)
        ends.set()
        closing.result()
        other.result().close()
    assert not runtime.forbidden
    assert not runtime.alive


def _becomes_true_soon(condition: Callable[[], bool]) -> bool:
    """Long enough for a thread that does not wait to be done."""
    time.sleep(0.05)
    return condition()


def test_a_session_that_does_not_open_is_gone_although_its_error_is_kept(model_path: Path, runtime: Runtime) -> None:
    runtime.fits, runtime.out_of_memory = 0, "an unknown kernel"
    with pytest.raises(BackendError, match="an unknown kernel") as caught:
        open_backend(model_path, "onnx-cuda")
    assert len(runtime.of("session")) == 1
    assert not runtime.alive
    assert not runtime.forbidden
    assert caught.value.__cause__ is not None


# What ends the use of a GPU, and whether its words say so or only the GPU does.
LASTING = [
    ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
    ("CUDA failure 214: uncorrectable ECC error encountered", False),
    ("CUDA failure 220: uncorrectable NVLink error detected during the execution", False),
    ("CUDA failure 999: unknown error", False),
    ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR", True),
    ("TensorRT EP execution context enqueue failed.", True),
]
# What the GPU is none the worse for.
PASSING = [
    "a wrong argument",
    "CUDA failure 900: operation not permitted when stream is capturing",
    "CUDA failure 209: no kernel image is available for execution on the device",
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    "CUDA failure 803: system has unsupported display driver / cuda driver combination",
    "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
    "TensorRT EP execution context enqueue failed.",
]


@pytest.mark.parametrize(("words", "is_seen_on_the_gpu"), LASTING)
def test_after_a_failure_of_the_gpu_nothing_on_it_is_touched_again(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, words: str, is_seen_on_the_gpu: bool
) -> None:
    def fail() -> None:
        monkeypatch.setattr(uploads.Context, "is_broken", is_seen_on_the_gpu)
        raise RuntimeError(words)

    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.computing = fail
    told = f"onnx-cuda failed on a batch of 2: {words}; start the command again: this process cannot use the GPU any"
    with pytest.raises(BackendError, match=told):
        backend.infer(pictures(2))
    done = [call for call in runtime.calls if call[0] != "upload"]
    with pytest.raises(BackendError, match=told):
        backend.infer(pictures(2))
    backend.close()
    del backend
    gc.collect()
    assert [call for call in runtime.calls if call[0] != "upload"] == done, "no run, nothing freed"
    assert len(runtime.alive) == 1, "its destructor would end the process"


@pytest.mark.parametrize(("words", "is_seen_on_the_gpu"), LASTING)
def test_a_gpu_that_fails_at_the_first_batch_is_said_to(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, words: str, is_seen_on_the_gpu: bool
) -> None:
    monkeypatch.setattr(uploads.Context, "is_broken", is_seen_on_the_gpu)
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"{words}; start the command again"):
        open_backend(model_path, "onnx-cuda")
    gc.collect()
    assert len(runtime.alive) == 1, "its destructor would end the process"


@pytest.mark.parametrize("words", PASSING)
def test_to_start_again_is_not_advised_where_it_does_not_help(model_path: Path, runtime: Runtime, words: str) -> None:
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"{words}$") as caught:
        open_backend(model_path, "onnx-cuda")
    assert not runtime.alive, "though its error is kept"
    assert not runtime.forbidden
    assert caught.value.__cause__ is not None


def test_a_copy_that_is_refused_by_a_healthy_gpu_is_not_the_end(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    with monkeypatch.context() as patch:
        patch.setattr(uploads.Context, "fails", "cuMemcpyHtoDAsync_v2 with CUDA error 1")
        with pytest.raises(BackendError, match=r"failed on a batch of 1: .*CUDA error 1$"):
            backend.infer(pictures(1))
    np.testing.assert_allclose(backend.infer(pictures(2)), expected(model_path, pictures(2)), rtol=1e-6)
    backend.close()
    assert (len(runtime.of("free")), len(runtime.alive)) == (2, 0)


def test_a_failed_copy_ends_the_use_of_the_gpu(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    monkeypatch.setattr(uploads.Context, "fails", "cuMemcpyHtoDAsync_v2 with CUDA error 719")
    with pytest.raises(BackendError, match=r"failed on a batch of 1: .*CUDA error 719; start the command again"):
        backend.infer(pictures(1))
    backend.close()
    assert len(runtime.alive) == 1
    assert not runtime.of("free")


def test_a_gpu_that_another_library_broke_is_left_as_it_is(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    monkeypatch.setattr(uploads.Context, "is_broken", True)
    backend.close()
    del backend
    gc.collect()
    assert len(runtime.alive) == 1
    assert not runtime.of("free")


def test_a_broken_gpu_that_says_it_is_short_of_memory_gets_no_new_session(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        monkeypatch.setattr(uploads.Context, "is_broken", True)
        raise RuntimeError("CUDA failure 2: out of memory")

    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    runtime.computing = fail
    for _ in range(2):
        with pytest.raises(BackendError, match="NVIDIA H200 fails: start the command again"):
            backend.infer(pictures(4))
    assert len(runtime.of("session")) == 1
    backend.close()
    assert len(runtime.alive) == 1
    assert not runtime.of("free")


@pytest.mark.parametrize("words", PASSING)
def test_a_failed_run_of_a_healthy_gpu_leaves_the_session_in_use(
    model_path: Path, runtime: Runtime, words: str
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"batch of 2: {words}$") as caught:
        backend.infer(pictures(2))
    runtime.fits = 2
    np.testing.assert_allclose(backend.infer(pictures(2)), expected(model_path, pictures(2)), rtol=1e-6)
    assert len(runtime.of("session")) == 1
    backend.close()
    assert not runtime.alive, "though its error is kept"
    assert not runtime.forbidden
    assert caught.value.__cause__ is not None


def test_a_model_with_nodes_off_the_gpu_does_without_a_cuda_graph_and_says_so(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.refuse_graphs = True
    backend = open_backend(model_path, "onnx-cuda")
    assert [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")] == ["1", "0"]
    assert backend.device == "GPU 0 (NVIDIA H200), TF32 allowed, without CUDA graph"
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "GPU 0: the model cannot be one CUDA graph (This session cannot use the graph"
    )
    assert "CPUExecutionProvider computes 1 AveragePool, 1 Cast" in record.getMessage()
    assert len(runtime.alive) == 1
    assert not runtime.forbidden


@pytest.mark.parametrize(
    "words",
    [
        "CUDA failure 900: operation not permitted when stream is capturing ; expr=cudaMalloc",
        "CUDA failure 901: operation failed due to a previous error during capture",
    ],
)
def test_a_graph_that_cannot_be_captured_is_done_without(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    runtime.capture_fails = words
    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    assert [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")] == ["1", "0"]
    assert backend.device.endswith(", without CUDA graph")
    assert [words in record.getMessage() for record in caplog.records] == [True]
    assert len(runtime.alive) == 1
    runtime.fits = 2
    np.testing.assert_allclose(backend.infer(pictures(4)), expected(model_path, pictures(4)), rtol=1e-6)
    graphs = [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")]
    assert graphs == ["1", "0", "0"], "not tried again for a smaller batch"
    assert not runtime.forbidden


@pytest.mark.parametrize(("precision", "tf32"), [("auto", "1"), ("float32", "0")])
def test_the_precision_is_an_option_and_part_of_the_version(
    model_path: Path, runtime: Runtime, precision: str, tf32: str
) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=[1], precision=precision)
    options = runtime.of("session")[0][1][0][1]
    assert (options["use_tf32"], options["device_id"]) == (tf32, "1")
    words = {"auto": "TF32 allowed", "float32": "float32"}[precision]
    assert backend.device == f"GPU 1 (NVIDIA H200), {words}"
    assert backend.version == (
        f"ONNX Runtime 1.99.0, {words}, NVIDIA H200 (compute capability 9.0), batches of {onnx_cuda.BATCH_SIZE}"
    )


def test_a_session_that_would_run_elsewhere_is_refused(model_path: Path, runtime: Runtime) -> None:
    runtime.really = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(BackendError, match="asked for TensorrtExecutionProvider and would run on CUDA"):
        open_backend(model_path, "onnx-tensorrt")


def test_tensorrt_caches_what_it_built_under_all_that_it_depends_on(
    model_path: Path, runtime: Runtime, tmp_path: Path
) -> None:
    backend = open_backend(model_path, "onnx-tensorrt", batch_size=8, precision="float16")
    (tensorrt, options), (second, cuda) = runtime.of("session")[0][1]
    assert (options["trt_cuda_graph_enable"], cuda["enable_cuda_graph"]) == ("1", "0")
    (folder,) = (tmp_path / "caches" / "mineral-batch" / "tensorrt").iterdir()
    assert (tensorrt, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)
    assert options["trt_fp16_enable"] == "1"
    assert folder.name.endswith("_ort1.99.0_trt10.16.0_NVIDIA-H200_sm9.0_batch8_float16")
    assert backend.version == (
        "ONNX Runtime 1.99.0, TensorRT 10.16.0, float16, NVIDIA H200 (compute capability 9.0), batches of 8"
    )
    np.testing.assert_allclose(backend.infer(pictures(9)), expected(model_path, pictures(9)), rtol=1e-6)


@pytest.mark.parametrize("numerics", [Numerics("float16"), Numerics("int8", "float16")])
@pytest.mark.parametrize("precision", ["auto", "float16"])
def test_a_file_that_says_what_is_float16_is_built_as_it_says(
    model_path: Path,
    contract: ModelContract,
    runtime: Runtime,
    tmp_path: Path,
    numerics: Numerics,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To allow float16 would let TensorRT choose anew, also where the file keeps float32."""
    monkeypatch.setattr(runtime, "InferenceSession", lambda *given, **_: Session(runtime, *given[:2], _["providers"]))
    path = tmp_path / "half.onnx"
    path.write_bytes(model_path.read_bytes())
    write_contract(path, replace(contract, numerics=numerics))
    open_backend(path, "onnx-tensorrt", precision=precision)
    assert runtime.of("session")[0][1][0][1]["trt_fp16_enable"] == "0"


def test_tensorrt_does_not_promise_what_it_cannot_keep(model_path: Path, runtime: Runtime) -> None:
    with pytest.raises(BackendError, match=r"TF32 by default.*--backend onnx-cuda or --backend tensorrt"):
        open_backend(model_path, "onnx-tensorrt", precision="float32")
    assert not runtime.calls


def test_a_model_of_which_tensorrt_takes_nothing_is_refused(model_path: Path, runtime: Runtime) -> None:
    runtime.engines = 0
    with pytest.raises(BackendError, match=r"TensorRT takes no part of the model, there is no engine in .*onnx-cuda"):
        open_backend(model_path, "onnx-tensorrt")
    assert not runtime.alive


def test_a_model_that_tensorrt_takes_in_parts_is_told(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.engines = 2
    open_backend(model_path, "onnx-tensorrt")
    assert [record.getMessage() for record in caplog.records] == [
        "TensorRT computes 2 separate parts of the model, ONNX Runtime's CUDA provider what is between them"
    ]


@pytest.mark.parametrize("error", [ImportError, OSError])
def test_tensorrts_bindings_that_do_not_load_are_no_reason_to_give_up(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(name: str) -> Any:
        raise error(f"{name}: libnvinfer.so.10: cannot open shared object file")

    class Library:
        def getInferLibVersion(self) -> int:
            return 101_203

    monkeypatch.setattr(onnx_tensorrt.importlib, "import_module", fail)
    monkeypatch.setattr(onnx_tensorrt.ctypes, "CDLL", lambda name: Library())
    assert onnx_tensorrt.tensorrt_version() == "10.12.3"


def test_nothing_that_changes_an_engine_leaves_its_folder_the_same(tmp_path: Path) -> None:
    one, other = tmp_path / "one.onnx", tmp_path / "other.onnx"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    usual: dict[str, Any] = {
        "path": one,
        "gpu": GPUS[0],
        "onnxruntime": "1",
        "tensorrt": "10",
        "batch": 8,
        "is_half": True,
    }
    changes: list[dict[str, Any]] = [
        {},
        {"path": other},
        {"gpu": Gpu(0, "NVIDIA L4", "9.0", 1)},
        {"gpu": Gpu(0, "NVIDIA H200", "8.9", 1)},
        {"onnxruntime": "2"},
        {"tensorrt": "11"},
        {"batch": 4},
        {"is_half": False},
    ]
    folders = {onnx_tensorrt.cache_folder(**{**usual, **change}) for change in changes}
    assert len(folders) == len(changes)
    assert onnx_tensorrt.cache_folder(**{**usual, "gpu": GPUS[1]}) in folders  # the same kind of GPU in another slot


def test_two_gpus_share_a_run_and_the_results_keep_their_order(model_path: Path, runtime: Runtime, album: Path) -> None:
    (album / "05.png").write_bytes(b"not a picture")
    with Predictor(model_path, backend="onnx-cpu") as alone:
        reference = list(alone.predict([album]))
    with Predictor(model_path, backend="onnx-cuda", devices=[0, 1], batch_size=2) as predictor:
        assert predictor.device == "GPU 0 (NVIDIA H200), TF32 allowed and GPU 1 (NVIDIA H200), TF32 allowed"
        results = [list(predictor.predict([album])) for _ in range(2)][-1]
    assert [len(threads) for threads in runtime.threads.values()] == [1, 1]  # a CUDA graph belongs to a thread
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gpu")]
    assert [result.path for result in results] == [result.path for result in reference]
    for one, other in zip(results, reference, strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            assert one == other
        else:
            np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
    assert sorted({index for _, _, index in runtime.of("allocate")}) == [0, 1]


def test_a_device_that_does_not_open_closes_the_others(model_path: Path, runtime: Runtime) -> None:
    with pytest.raises(BackendError, match="there is no GPU 7, only 0, 1") as caught:
        open_backend(model_path, "onnx-tensorrt", devices=[0, 7])
    assert len(runtime.of("session")) == 1
    assert not runtime.alive
    assert not runtime.forbidden
    assert caught.value.__traceback__ is not None


def test_a_group_of_two_kinds_of_gpu_names_both(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_driver, "gpus", lambda: [GPUS[0], Gpu(1, "NVIDIA L4", "8.9", 24 << 30)])
    versions = {open_backend(model_path, "onnx-cuda", devices=order).version for order in ([0, 1], [1, 0])}
    (version,) = versions
    assert "H200 (compute capability 9.0)" in version
    assert "L4 (compute capability 8.9)" in version


@pytest.mark.parametrize("index", [-1, 2])
def test_a_gpu_that_is_not_there_is_refused(model_path: Path, runtime: Runtime, index: int) -> None:
    with pytest.raises(BackendError, match=f"onnx-cuda: there is no GPU {index}, only 0, 1$"):
        open_backend(model_path, "onnx-cuda", devices=[index])


def test_the_devices_of_a_group_take_turns_and_close_whatever_happens(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    assert isinstance(group, DeviceGroup)
    assert group.workers == 4
    assert group.version == "ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of 4"
    before = runtime.runs.copy()
    for _ in range(2):
        group.infer(pictures(4))
    assert sorted((runtime.runs - before).values()) == [1, 1], "each did one of the two"
    assert [len(threads) for threads in runtime.threads.values()] == [1, 1]
    runtime.fits, runtime.out_of_memory = 0, "CUDA failure 700: an illegal memory access"
    with pytest.raises(BackendError):
        group.infer(pictures(1))
    group.close()
    assert len(runtime.alive) == 1, "that of the GPU which failed"


def test_a_run_is_not_resumed_on_another_gpu(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        runs.run(predictor, [album], tmp_path / "out")
    with Predictor(model_path, backend="onnx-cuda", batch_size=4, devices=[1]) as same_kind:
        assert runs.run(same_kind, [album], tmp_path / "out").reused == 11
    with (
        Predictor(model_path, backend="onnx-cuda", batch_size=2) as other,
        pytest.raises(DataError, match=r"engine was .*batches of 4, is .*batches of 2"),
    ):
        runs.run(other, [album], tmp_path / "out")
    monkeypatch.setattr(cuda_driver, "gpus", lambda: [Gpu(0, "NVIDIA L4", "8.9", 1)])
    with (
        Predictor(model_path, backend="onnx-cuda", batch_size=4) as other,
        pytest.raises(DataError, match=r"engine was .*H200 \(compute capability 9.0\).*, is .*L4 \(compute capab"),
    ):
        runs.run(other, [album], tmp_path / "out")


def test_a_run_that_went_on_with_smaller_batches_says_so(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path
) -> None:
    def shrink_after_the_first_batch() -> None:
        if len(runtime.of("run")) == 2:
            runtime.fits = 2

    runtime.computing = shrink_after_the_first_batch
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").predicted == 11
        assert predictor.engine_version.endswith("batches of 2")
    told = made_with(tmp_path / "out")
    assert told["engine"].endswith("batches of 4")
    assert told["engine later"].endswith("batches of 2")
    runtime.fits = 4
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").reused == 11
    assert made_with(tmp_path / "out") == told, "as it was for some of the results"


def made_with(folder: Path) -> dict[str, str]:
    fingerprint: dict[str, str] = json.loads((folder / "run.json").read_text())["fingerprint"]
    return fingerprint


@pytest.mark.parametrize("devices", [[0], [0, 1]])
def test_the_same_command_goes_on_with_a_run_however_much_memory_is_free(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path, devices: list[int]
) -> None:
    def part(enough: int, fits: int) -> runs.Report:
        runtime.fits = fits
        drawn = itertools.count()
        with Predictor(model_path, backend="onnx-cuda", batch_size=4, devices=devices) as predictor:
            return runs.run(predictor, [album], tmp_path / "out", stop=lambda: next(drawn) == enough)

    free = {2: 4, 4: 2, 6: 2, 8: 1, 10: 2, 11: 1 << 20}  # after so many pictures: what fits
    assert [part(*given).predicted for given in free.items()] == list(free)
    told = made_with(tmp_path / "out")
    version = "onnx-cuda, ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of "
    assert told["engine"] == f"{version}4"
    assert told["engine later"] == f"{version}2; {version}1", "each once"


def test_memory_that_is_short_when_the_model_is_opened_is_noted_beside_what_was_asked_for(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path
) -> None:
    runtime.fits = 40
    with Predictor(model_path, backend="onnx-cuda") as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").predicted == 11
        assert predictor.engine_version.endswith("batches of 32")
        assert predictor.engine_identity.endswith("batches of 64")
    told = made_with(tmp_path / "out")
    assert (told["engine"][-13:], told["engine later"][-13:]) == ("batches of 64", "batches of 32")


def test_a_group_is_known_by_what_was_asked_for_whichever_gpu_is_short(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    runtime.fits = 2
    group.infer(pictures(4))
    version = "ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of "
    assert group.version == f"{version}2 and {version}4"
    assert identity(group) == f"{version}4"


class Driver:
    """libcuda with one GPU, whose functions write where they are pointed to."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing
        self.code = 999
        self.freed: list[int] = []
        self.contexts: dict[int, int] = defaultdict(int)  # thread -> how many are on its stack

    def __getattr__(self, name: str) -> Any:
        def function(*arguments: Any) -> int:
            if name == self.failing:
                return self.code
            return int(getattr(type(self), f"do_{name}", lambda *_: 0)(self, *arguments) or 0)

        function.__name__ = name
        return function

    def do_cuDeviceGetCount(self, count: Any) -> None:
        count._obj.value = 1

    def do_cuDeviceGetName(self, name: Any, size: Any, device: Any) -> None:
        name.value = b"NVIDIA L4"

    def do_cuDeviceGetAttribute(self, value: Any, attribute: Any, device: Any) -> None:
        value._obj.value = {75: 8, 76: 9}[attribute.value]

    def do_cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> None:
        memory._obj.value = 24 << 30

    def do_cuDriverGetVersion(self, version: Any) -> None:
        version._obj.value = 12080

    def do_cuMemHostAlloc(self, address: Any, size: Any, flags: Any) -> None:
        self.block = np.full(size.value, 3, np.uint8)
        address._obj.value = self.block.ctypes.data

    def do_cuMemFreeHost(self, address: Any) -> int:
        if not self.contexts[threading.get_ident()]:
            return 201
        self.freed.append(address.value)
        return 0

    def do_cuCtxPushCurrent_v2(self, context: Any) -> None:
        self.contexts[threading.get_ident()] += 1

    def do_cuCtxPopCurrent_v2(self, pointer: Any) -> None:
        self.contexts[threading.get_ident()] -= 1


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    def install(failing: str = "") -> Driver:
        one = Driver(failing)
        monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: one)
        cuda_driver._driver.cache_clear()
        return one

    yield install
    cuda_driver._driver.cache_clear()


def test_the_driver_tells_what_gpus_there_are(driver: Any) -> None:
    driver()
    assert cuda_driver.gpus() == [Gpu(0, "NVIDIA L4", "8.9", 24 << 30)]
    assert cuda_driver.cuda_version() == "12.8"


def test_page_locked_memory_is_zero_and_freed_with_its_last_view(driver: Any) -> None:
    one = driver()
    pixels = cuda_driver.page_locked((2, 24, 32, 3), 0)
    assert (pixels.shape, pixels.dtype, pixels.any()) == ((2, 24, 32, 3), np.uint8, False)
    row = pixels[1]
    row[...] = 9
    del pixels
    assert one.freed == []
    assert one.block[-1] == 9
    del row
    assert one.freed == [one.block.ctypes.data], "though this thread has no context of its own"
    assert not any(one.contexts.values())


@pytest.mark.parametrize("function", ["cuInit", "cuMemHostAlloc", "cuCtxPushCurrent_v2"])
def test_a_driver_that_refuses_is_named_with_its_error(driver: Any, function: str) -> None:
    driver(function)
    with pytest.raises(DriverError, match=f"{function} with CUDA error 999"):
        cuda_driver.page_locked((1, 2, 2, 3), 0)


@pytest.mark.parametrize(("code", "words"), [(2, r"2 \(out of memory\)"), (100, r"100 \(no GPU is visible\)")])
def test_errors_that_a_user_can_mend_are_put_in_words(driver: Any, code: int, words: str) -> None:
    driver("cuMemHostAlloc").code = code
    with pytest.raises(DriverError, match=f"cuMemHostAlloc with CUDA error {words}$"):
        cuda_driver.page_locked((1, 2, 2, 3), 0)


def test_without_a_driver_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_LIBRARY", "libcuda-that-is-not-there.so.1")
    cuda_driver._driver.cache_clear()
    with pytest.raises(DriverError, match="no NVIDIA driver"):
        cuda_driver.gpus()
