"""The GPU backends on a recording stand-in for onnxruntime-gpu, whose sessions compute on the CPU.

What it shows: the order of calls, fixed shapes, buffers that are made once, padding, halving, options and the names of
caches. What it cannot show: that CUDA does as told. Tests marked `gpu` would.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError, Failure, Predictor
from mineral_batch.backends import cuda_driver, onnx_cuda, onnx_tensorrt, open_backend
from mineral_batch.backends.cuda_driver import DriverError, Gpu

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

real = pytest.importorskip("onnxruntime")

GPUS = [Gpu(0, "NVIDIA H200", "9.0", 150 << 30), Gpu(1, "NVIDIA H200", "9.0", 150 << 30)]


class DeviceValue:
    """An OrtValue on the GPU: memory that only the calls of ONNX Runtime reach."""

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
        if runtime.refuse_graphs and providers[0][1].get("enable_cuda_graph") == "1":
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self._session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._providers = [name for name, _ in providers]
        self._runtime = runtime
        self._has_run = False
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.run = self._session.run

    def get_providers(self) -> list[str]:
        return self._runtime.really or self._providers

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding) -> None:
        batch = len(binding.pixels.memory)
        self._runtime.calls.append(("run", batch))
        self._runtime.threads[id(self)].add(threading.get_ident())
        if batch > self._runtime.fits:
            raise RuntimeError(self._runtime.out_of_memory)
        if not self._has_run:
            self._has_run = True
            self._runtime.capture()
        binding.probabilities.memory[...] = self._session.run(None, {"pixels": binding.pixels.memory})[0]


class Runtime:
    """The module `onnxruntime`, as far as the backends use it."""

    __version__ = "1.99.0"
    SessionOptions = real.SessionOptions

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.threads: dict[int, set[int]] = defaultdict(set)  # session -> threads that ran it
        self.fits = 1 << 20
        self.out_of_memory = "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 939524096"
        self.really: list[str] | None = None
        self.refuse_graphs = False
        self.seconds_to_capture = 0.0
        self._capturing: int | None = None
        self.OrtValue = self

    def capture(self) -> None:
        """In CUDA's global mode: no other thread may allocate or copy."""
        assert self._capturing is None, "two threads capture"
        self._capturing = threading.get_ident()
        time.sleep(self.seconds_to_capture)
        self._capturing = None

    def forbid_while_capturing(self, what: str) -> None:
        if self._capturing not in (None, threading.get_ident()):
            raise RuntimeError(f"{what}: operation not permitted when stream is capturing")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Session:
        return Session(self, path, options, providers)

    def ortvalue_from_shape_and_type(self, *arguments: Any) -> DeviceValue:
        return DeviceValue(self, *arguments)

    def preload_dlls(self) -> None:
        self.calls.append(("preload",))
        print("Failed to load libcudnn.so.9")

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    standin = Runtime()
    monkeypatch.setitem(sys.modules, "onnxruntime", standin)
    monkeypatch.setattr(cuda_driver, "gpus", lambda: GPUS)
    monkeypatch.setattr(onnx_cuda, "page_locked", _no_driver)
    monkeypatch.setattr(onnx_tensorrt, "tensorrt_version", lambda: "10.16.0")
    return standin


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
    assert {size for _, size in runtime.of("run")} == {4}
    assert len(runtime.of("session")) == 1
    assert len(runtime.of("copy")) == len(runtime.of("run")) - 1 == 3 * -(-count // 4), "one to capture the graph"


def test_a_full_batch_is_copied_to_the_gpu_from_where_it_is(model_path: Path, runtime: Runtime) -> None:
    pixels = pictures(8)
    open_backend(model_path, "onnx-cuda", batch_size=4).infer(pixels)
    assert runtime.of("copy") == [("copy", pixels[:4].ctypes.data), ("copy", pixels[4:].ctypes.data)]


def test_libraries_are_looked_for_before_the_session_and_quietly(
    model_path: Path, runtime: Runtime, capsys: pytest.CaptureFixture[str]
) -> None:
    open_backend(model_path, "onnx-cuda")
    assert [call[0] for call in runtime.calls[:2]] == ["preload", "session"]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    ["Failed to allocate memory for requested buffer", "CUDA failure 2: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"],
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


def test_a_gpu_too_small_for_one_picture_is_an_error(model_path: Path, runtime: Runtime) -> None:
    runtime.fits = 0
    with pytest.raises(BackendError, match="too little free memory for one picture"):
        open_backend(model_path, "onnx-cuda", batch_size=2)


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
    runtime.seconds_to_capture = 0.02
    pixels = pictures(4)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):  # both run out of memory, and make new sessions, while the other one works
            runtime.fits = max(1, runtime.fits // 2) if runtime.fits < 4 else 2
            answers = list(pool.map(lambda _: group.infer(pixels), range(6)))
    for answer in answers:
        np.testing.assert_allclose(answer, expected(model_path, pixels), rtol=1e-6)


def test_a_model_with_nodes_off_the_gpu_does_without_a_cuda_graph(model_path: Path, runtime: Runtime) -> None:
    runtime.refuse_graphs = True
    open_backend(model_path, "onnx-cuda")
    assert [providers[0][1]["enable_cuda_graph"] for _, providers in runtime.of("session")] == ["1", "0"]


@pytest.mark.parametrize(("precision", "tf32"), [("auto", "1"), ("float32", "0")])
def test_the_precision_is_an_option_and_part_of_the_version(
    model_path: Path, runtime: Runtime, precision: str, tf32: str
) -> None:
    backend = open_backend(model_path, "onnx-cuda", devices=[1], precision=precision)
    options = runtime.of("session")[0][1][0][1]
    assert (options["use_tf32"], options["device_id"]) == (tf32, "1")
    words = {"auto": "TF32 allowed", "float32": "float32"}[precision]
    assert backend.device == f"GPU 1 (NVIDIA H200), {words}"
    assert backend.version == f"ONNX Runtime 1.99.0, {words}"


def test_a_session_that_would_run_elsewhere_is_refused(model_path: Path, runtime: Runtime) -> None:
    runtime.really = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.raises(BackendError, match="asked for TensorrtExecutionProvider and would run on CUDA"):
        open_backend(model_path, "onnx-tensorrt")


def test_tensorrt_caches_what_it_built_under_all_that_it_depends_on(
    model_path: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    backend = open_backend(model_path, "onnx-tensorrt", batch_size=8, precision="float16")
    (tensorrt, options), (second, cuda) = runtime.of("session")[0][1]
    assert (options["trt_cuda_graph_enable"], cuda["enable_cuda_graph"]) == ("1", "0")
    (folder,) = (tmp_path / "mineral-batch" / "tensorrt").iterdir()
    assert (tensorrt, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(folder)
    assert options["trt_fp16_enable"] == "1"
    assert folder.name.endswith("_ort1.99.0_trt10.16.0_NVIDIA-H200_sm9.0_batch8_float16")
    assert backend.version == "ONNX Runtime 1.99.0, TensorRT 10.16.0, float16"


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
    with pytest.raises(BackendError, match="there is no GPU 7, only 0, 1"):
        open_backend(model_path, "onnx-tensorrt", devices=[0, 7])


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
