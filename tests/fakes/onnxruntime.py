"""A fake onnxruntime-gpu on the fake GPUs of `tests/fakes/cuda.py`; its sessions compute with the real one on the CPU.

What it shows: the order of calls, fixed shapes, buffers that are made once, padding, halving, what is computed while
something else is copied, when sessions are destroyed, options and the names of caches. What it cannot show: that CUDA
does as told. It refuses provider options that the real parsers refuse: `tests/gpu_stubs` compares the two.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as real

from mineral_batch.cuda.capture_lock import capture_lock

from .cuda import finish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from numpy.typing import NDArray

    from .cuda import Cuda

_BOOLEANS = ("True", "False")
_CUDA_BOOLEANS = ("0", "1", *_BOOLEANS)
# Provider -> option -> the values that it takes; None for any.
OPTIONS: dict[str, dict[str, tuple[str, ...] | None]] = {
    "CUDAExecutionProvider": {
        "device_id": None,
        "use_tf32": _CUDA_BOOLEANS,
        "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
        "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
        "enable_cuda_graph": _CUDA_BOOLEANS,
        "prefer_nhwc": _CUDA_BOOLEANS,
        "user_compute_stream": None,
    },
    "TensorrtExecutionProvider": {
        "device_id": None,
        "trt_fp16_enable": _BOOLEANS,
        "trt_engine_cache_enable": _BOOLEANS,
        "trt_engine_cache_path": None,
        "trt_timing_cache_enable": _BOOLEANS,
        "trt_timing_cache_path": None,
        "trt_cuda_graph_enable": _BOOLEANS,
        "user_compute_stream": None,
    },
    "CPUExecutionProvider": {},
}


def check_options(provider: str, options: dict[str, str]) -> None:
    for name, value in options.items():
        if name not in OPTIONS[provider]:
            raise RuntimeError(f"unknown provider option: {name}")
        possible = OPTIONS[provider][name]
        if possible is not None and value not in possible:
            raise RuntimeError(f"The value for the key '{name}' should be one of {possible}, got {value!r}")


class DeviceValue:
    """An OrtValue on the GPU: memory that only the calls of ONNX Runtime and the driver reach."""

    def __init__(self, runtime: Runtime, shape: Any, kind: Any, device: str, index: int) -> None:
        assert device == "cuda"
        runtime.cuda.forbid_during_capture("an allocation")
        self._runtime, self._shape, self._kind = runtime, tuple(shape), kind
        size = int(np.prod(self._shape)) * np.dtype(kind).itemsize
        self._address = runtime.cuda.new_memory(size)
        weakref.finalize(self, runtime.cuda.memory.pop, self._address, None)
        runtime.calls.append(("allocate", self._shape, index))

    @property
    def memory(self) -> NDArray[Any]:
        return self._runtime.cuda.memory[self._address].view(self._kind).reshape(self._shape)

    def update_inplace(self, array: NDArray[Any]) -> None:
        self._runtime.cuda.forbid_during_capture("a copy")
        assert array.shape == self._shape
        assert array.dtype == self._kind
        assert array.flags.c_contiguous
        self._runtime.calls.append(("update", array.ctypes.data))
        self.memory[...] = array

    def data_ptr(self) -> int:
        return self._address

    def numpy(self) -> NDArray[Any]:
        return self.memory.copy()


class Binding:
    def bind_ortvalue_input(self, name: str, value: DeviceValue) -> None:
        assert name == "pixels"
        self.pixels = value

    def bind_ortvalue_output(self, name: str, value: DeviceValue) -> None:
        assert name == "probabilities"
        self.probabilities = value


class RunOptions:
    def __init__(self) -> None:
        self.waits = True

    def add_run_config_entry(self, name: str, value: str) -> None:
        assert (name, value) == ("disable_synchronize_execution_providers", "1")
        self.waits = False


class Session:
    def __init__(self, runtime: Runtime, path: str, options: Any, providers: list[Any]) -> None:
        runtime.calls.append(("session", providers))
        for name, provider_options in providers:
            check_options(name, provider_options)
        runtime.alive.add(self)
        weakref.finalize(self, runtime.destroy)
        first = providers[0][1]
        self._has_graph = first.get("enable_cuda_graph") == "1" or first.get("trt_cuda_graph_enable") == "True"
        if runtime.refuse_graphs and self._has_graph:
            raise RuntimeError("This session cannot use the graph capture feature as requested by the user")
        self._stream = int(first.get("user_compute_stream", 0))
        self._session = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._providers = [name for name, _ in providers]
        self._runtime = runtime
        self._has_run = False
        self.get_inputs, self.get_outputs = self._session.get_inputs, self._session.get_outputs
        self.run = self._session.run
        self.get_provider_graph_assignment_info = self._session.get_provider_graph_assignment_info
        for part in range(runtime.engines):
            if "trt_engine_cache_path" in first:
                (Path(first["trt_engine_cache_path"]) / f"part_{part}.engine").touch()

    def get_providers(self) -> list[str]:
        return self._runtime.really or self._providers

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: RunOptions | None = None) -> None:
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
        self._enqueue(binding, waits=options is None or options.waits)

    def _enqueue(self, binding: Binding, *, waits: bool) -> None:
        """On the user's stream nothing is computed before somebody waits for it."""

        def compute() -> None:
            binding.probabilities.memory[...] = self._session.run(None, {"pixels": binding.pixels.memory})[0]

        if not self._stream:
            assert waits, "nobody else can wait for a stream of ONNX Runtime's own"
            compute()
            return
        self._runtime.cuda.enqueue(self._stream, compute)
        if waits:
            finish(self._runtime.cuda.streams[self._stream])


class Runtime:
    """The module `onnxruntime`, as far as the engines use it.

    Attributes:
        cuda: the GPUs.
        calls: what was called, in order.
        threads: session -> threads that ran it.
        runs: session -> how often it ran.
        alive: the sessions that exist.
        fits: the largest batch that the GPU's memory holds.
        out_of_memory: the error of a larger one.
        really: the providers of a session, if not the ones asked for.
        refuse_graphs, capture_fails, capturing, computing: how that goes.
        engines: how many a TensorRT session builds.
    """

    __version__ = "1.99.0"
    cuda_version = "13.0"
    SessionOptions = real.SessionOptions
    RunOptions = RunOptions

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.calls: list[tuple[Any, ...]] = []
        self.threads: dict[int, set[int]] = defaultdict(set)
        self.runs: Counter[int] = Counter()
        self.alive: weakref.WeakSet[Session] = weakref.WeakSet()
        self.fits = 1 << 20
        self.out_of_memory = "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 939524096"
        self.really: list[str] | None = None
        self.refuse_graphs = False
        self.capture_fails = ""
        self.capturing: Callable[[], object] = lambda: None
        self.computing: Callable[[], object] = lambda: None
        self.engines = 1
        self.OrtValue = self
        self._inside: dict[int, int] = defaultdict(int)  # thread -> how often it holds the capture lock

    def watch_lock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Know which threads hold the capture lock."""
        for name in ("shared", "exclusive"):
            monkeypatch.setattr(capture_lock, name, self._counted(getattr(capture_lock, name)))

    def _counted(self, hold: Callable[[], Any]) -> Callable[[], Any]:
        @contextmanager
        def held() -> Iterator[None]:
            with hold():
                self._inside[threading.get_ident()] += 1
                try:
                    yield
                finally:
                    self._inside[threading.get_ident()] -= 1

        return held

    def capture(self) -> None:
        """In CUDA's global mode: no other thread may allocate, copy or destroy."""
        with self.cuda.captured_globally():
            self.capturing()
        if self.capture_fails:
            raise RuntimeError(self.capture_fails)

    def destroy(self) -> None:
        """What a session's destructor does; one that throws ends the process."""
        if not self._inside[threading.get_ident()]:
            self.cuda.forbidden.append("a destruction without the capture lock")

    def get_available_providers(self) -> list[str]:
        return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: Any, providers: list[Any], **more: Any) -> Session:
        assert more.pop("enable_fallback") == 0, "or it makes a session on the CPU"
        return Session(self, path, options, providers)

    def ortvalue_from_shape_and_type(self, *arguments: Any) -> DeviceValue:
        return DeviceValue(self, *arguments)

    def preload_dlls(self) -> None:
        self.calls.append(("preload",))

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == kind]
