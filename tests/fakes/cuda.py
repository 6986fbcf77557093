"""Fake GPUs, with a fake of the driver as ctypes calls it; `cuda_modules` has the Python packages on them.

A stream runs nothing until it is waited for. Memory is known by its address, holds rubbish at first, and lies further
apart than 32 bits reach. Anything used without a context, after it was freed or outside of what was allocated is an
error. The real cuda-core is tried on a driver in C in `tests/gpu_stubs`; neither says anything about a real GPU.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import deque
from contextlib import contextmanager
from enum import IntEnum
from functools import wraps
from itertools import count
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda import probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pytest
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Work = Callable[[], None]
    #: The number of threads and the arguments -> what the stream runs.
    Kernel = Callable[[int, Sequence[np.generic]], Work]

ANYWHERE = ("cuDevice", "cuDriver", "cuCtxPush", "cuCtxPop", "cuCtxGet", "cuCtxSet")  # what needs no context
CONTEXTS = 1 << 50  # the primary context of GPU 0; that of GPU 1 is the next one
POOLS = 1 << 51  # the memory pool of GPU 0


class CUresult(IntEnum):
    """The error numbers that the tests use."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_LAUNCH_FAILED = 719
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_UNKNOWN = 999


class CudaError(Exception):
    """A function of the driver that fails; also pycuda's exception."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed: CUDA error {code}")
        self.code = code


class Cuda:
    """GPUs, and the driver's functions under its names, with Python's values as arguments and results.

    Args:
        gpus: how many.
        name: of each.
        capability: of each, as the driver has it.

    Attributes:
        log: what was done, except what every program does.
        errors: function -> the number of the error that it fails with.
        kernels: name -> what it does; it is launched if a module has a kernel of that name.
        has_nvrtc: whether the kernel's source can be compiled.
        compiled: the code of each kernel, in order.
        memory, pinned: address -> bytes on a GPU, page-locked bytes.
        retained: contexts that are held.
        free: bytes that are free on each GPU.
        kept: GPU -> bytes that its memory pool keeps.
        uploads: addresses of the host from which was copied to a GPU, in order.
        forbidden: what was done in one thread while another one captured a graph in CUDA's global mode.
    """

    def __init__(self, gpus: int = 1, name: str = "NVIDIA L4", capability: tuple[int, int] = (8, 9)) -> None:
        self.gpus = gpus
        self.names = dict.fromkeys(range(gpus), name)
        self.capabilities = dict.fromkeys(range(gpus), capability)
        self.uploads: list[int] = []
        self.forbidden: list[str] = []
        self._captures: int | None = None  # the thread that captures globally
        self.log: list[str] = []
        self.errors: dict[str, int] = {}
        self.kernels: dict[str, Kernel] = {}
        self.memory: dict[int, Bytes] = {}
        self.pinned: dict[int, Bytes] = {}
        self.retained: list[int] = []
        self.free = 20 << 30
        self.kept: dict[int, int] = {}
        self.default_stream: deque[Work] = deque()
        self.streams: dict[int, deque[Work]] = {}
        self.capturing: dict[int, deque[Work]] = {}
        self.graphs: dict[int, deque[Work]] = {}
        self.executables: dict[int, deque[Work]] = {}
        self.has_nvrtc = False
        self.compiled: list[str] = []
        self._handles = count(1 << 40, 1 << 32)
        self._threads = threading.local()

    def install(self, monkeypatch: pytest.MonkeyPatch, *, pycuda: bool = False) -> None:
        """Be the driver of this machine, with cuda-core, and with pycuda or without it."""
        from .cuda_modules import PyCuda, core_module, driver_module

        names = [name for name in vars(Cuda) if name.startswith(("cuDevice", "cuDriver"))]
        library = SimpleNamespace(**{name: self._exported(name) for name in names})
        monkeypatch.setattr(probe, "_driver", lambda: library)
        modules: dict[str, Any] = {"cuda": ModuleType("cuda"), "cuda.bindings": ModuleType("cuda.bindings")}
        modules |= {"cuda.core": core_module(self), "cuda.bindings.driver": driver_module(self)}
        modules |= {"pycuda": None, "pycuda.driver": None}
        if pycuda:
            modules |= {"pycuda": ModuleType("pycuda"), "pycuda.driver": PyCuda(self)}
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)

    def _exported(self, name: str) -> Callable[..., int]:
        """As ctypes calls it: values in its types, results by reference; the answer is an error's number."""

        @wraps(getattr(self, name))
        def function(*arguments: Any) -> int:
            assert not any(isinstance(one, int) for one in arguments), f"{name}: ctypes takes it for 32 bits"
            results = [one._obj for one in arguments if hasattr(one, "_obj")]
            given = [one for one in arguments if not hasattr(one, "_obj")]
            try:
                answer = self.do(name, *(one.value if isinstance(one, ctypes._SimpleCData) else one for one in given))
            except CudaError as error:
                return error.code
            for result in results:
                result.value = answer
            return 0

        return function

    def do(self, name: str, *values: Any) -> Any:
        """What the driver's function of this name gives; `CudaError` if it is one of `errors`."""
        if name in self.errors:
            raise CudaError(name, self.errors[name])
        if not name.startswith(ANYWHERE):
            self.require_context(name)
        if name.startswith(("cuMem", "cuStreamCreate", "cuStreamDestroy")):
            self.forbid_during_capture(name)
        return getattr(self, name)(*values)

    @property
    def stack(self) -> list[Any]:
        """This thread's contexts; the last one is current."""
        found: list[Any] = self._threads.__dict__.setdefault("stack", [])
        return found

    def require_context(self, what: str) -> None:
        assert self.stack, f"{what} without a context in this thread"
        assert self.stack[-1] in self.retained, f"{what} in a context that nobody holds"

    def require_given_back(self) -> None:
        """Page-locked memory may live on, with the stream of its context; primary contexts stay for the process."""
        assert (self.memory, self.capturing, self.graphs, self.executables) == ({}, {}, {}, {})
        assert (self.stack, len(self.default_stream)) == ([], 0)
        assert len(self.streams) <= len(self.pinned), "a stream was left"

    @contextmanager
    def captured_globally(self) -> Iterator[None]:
        """This thread captures a graph in the block, in CUDA's global mode."""
        assert self._captures is None, "two threads capture"
        self._captures = threading.get_ident()
        try:
            yield
        finally:
            self._captures = None

    def forbid_during_capture(self, what: str) -> None:
        if self._captures not in (None, threading.get_ident()):
            self.forbidden.append(what)
            raise CudaError(what, 900)

    def say(self, what: str) -> None:
        self.require_context(what)
        self.log.append(what)

    def new_memory(self, size: int) -> int:
        """The address of bytes on a GPU that another library allocates."""
        self.memory[at := next(self._handles)] = np.full(size, 77, np.uint8)
        return at

    def place(self, content: Bytes) -> int:
        """Its address, once it lies on the GPU."""
        self.require_context("allocate")
        self.memory[at := next(self._handles)] = content
        return at

    def at(self, address: int, size: int) -> Bytes:
        """`size` bytes on the GPU."""
        return part(self.memory, address, size)

    def enqueue(self, stream: int, work: Work) -> None:
        self.capturing.get(stream, self.streams[stream]).append(work)

    def cuDriverGetVersion(self) -> int:
        return 13000

    def cuDeviceGetCount(self) -> int:
        return self.gpus

    def cuDeviceGet(self, index: int) -> int:
        assert index < self.gpus
        return index

    def cuDeviceGetName(self, buffer: Any, size: int, device: int) -> None:
        buffer.value = self.names[device].encode()

    def cuDeviceGetAttribute(self, which: int, device: int) -> int:
        major, minor = self.capabilities[device]
        return {75: major, 76: minor}[which]

    def cuDeviceTotalMem_v2(self, device: int) -> int:
        return 24 << 30

    def cuDeviceGetDefaultMemPool(self, device: int) -> int:
        return POOLS + device

    def cuMemPoolSetAttribute(self, pool: int, which: int, value: Any) -> None:
        assert which == 4, "not the threshold above which memory is given back"
        self.kept[pool - POOLS] = value

    def cuMemGetInfo_v2(self) -> int:
        """Both what is free and what there is: nobody asks for the latter."""
        return self.free

    def cuDevicePrimaryCtxRetain(self, device: int) -> int:
        assert device < self.gpus
        self.retained.append(CONTEXTS + device)
        return CONTEXTS + device

    def cuCtxGetCurrent(self) -> Any:
        return self.stack[-1] if self.stack else None

    def cuCtxSetCurrent(self, context: Any) -> None:
        """Replaces the top of the stack; no context unbinds it."""
        del self.stack[-1:]
        if context is not None:
            self.stack.append(context)

    def cuCtxPushCurrent_v2(self, context: int) -> None:
        assert context in self.retained
        self.stack.append(context)

    def cuCtxPopCurrent_v2(self) -> Any:
        return self.stack.pop()

    def cuCtxSynchronize(self) -> None:
        self.say("wait for all")
        for queue in (self.default_stream, *self.streams.values()):
            finish(queue)

    def cuMemHostAlloc(self, size: int) -> int:
        memory = np.full(size, 77, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    def cuMemHostRegister(self, address: int, size: int, flags: int) -> None:
        assert flags == 1, "page-locked for one context only"
        assert not self.capturing, "not allowed during a capture"
        self.pinned[address] = np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)

    def cuMemHostUnregister(self, address: int) -> None:
        self.cuMemFreeHost(address)

    def cuMemFreeHost(self, address: int) -> None:
        assert not self.capturing, "freed during a capture, which that spoils"
        del self.pinned[address]

    def cuMemAlloc_v2(self, size: int) -> int:
        self.say(f"allocate {size}")
        return self.place(np.full(size, 77, np.uint8))

    def cuMemsetD8_v2(self, memory: int, value: int, size: int) -> None:
        self.default_stream.append(lambda: self.at(memory, size).fill(value))

    def cuMemFree_v2(self, memory: int) -> None:
        self.say("free")
        del self.memory[memory]

    def cuMemcpyHtoDAsync_v2(self, memory: int, source: int, size: int, stream: int) -> None:
        self.say(f"to GPU {size}")
        self.uploads.append(source)
        blocks, start = self.pinned, base(self.pinned, source)
        if not start or source >= start + blocks[start].size:  # ordinary memory: the call returns once it was read
            blocks = {source: np.frombuffer(ctypes.string_at(source, size), np.uint8)}
        self.enqueue(stream, lambda: np.copyto(self.at(memory, size), part(blocks, source, size)))

    def cuMemcpyDtoHAsync_v2(self, target: int, memory: int, size: int, stream: int) -> None:
        self.say(f"from GPU {size}")
        self.enqueue(stream, lambda: np.copyto(part(self.pinned, target, size), self.at(memory, size)))

    def cuStreamCreate(self, flags: int) -> int:
        self.say("stream")
        assert flags == 1, "it waits for the default stream, and breaks what torch does there during a capture"
        self.streams[stream := next(self._handles)] = deque()
        return stream

    def cuStreamSynchronize(self, stream: int) -> None:
        self.say("wait")
        assert stream not in self.capturing
        finish(self.streams[stream])

    def cuStreamDestroy_v2(self, stream: int) -> None:
        self.say("destroy stream")
        assert not self.streams.pop(stream), "still at work"

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        self.say("capture")
        assert mode == 1, "it forbids other threads to copy"
        self.capturing[stream] = deque()

    def cuStreamEndCapture(self, stream: int) -> int:
        self.graphs[graph := next(self._handles)] = self.capturing.pop(stream)
        return graph

    def cuGraphInstantiateWithFlags(self, graph: int, flags: int) -> int:
        self.executables[executable := next(self._handles)] = self.graphs[graph]
        return executable

    def cuGraphLaunch(self, executable: int, stream: int) -> None:
        self.say("launch")
        for work in self.executables[executable]:
            self.enqueue(stream, work)

    def cuGraphDestroy(self, graph: int) -> None:
        self.say("destroy graph")
        del self.graphs[graph]

    def cuGraphExecDestroy(self, executable: int) -> None:
        self.say("destroy graph")
        del self.executables[executable]

    def cuMemcpyDtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        self.say(f"on GPU {size}")
        self.enqueue(stream, lambda: np.copyto(self.at(target, size), self.at(source, size)))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """`cuMemcpyAsync`: which of the three copies it is follows from the addresses."""
        on_gpu = [
            bool(start := base(self.memory, one)) and one < start + self.memory[start].size for one in (target, source)
        ]
        kinds = {(True, False): "HtoD", (False, True): "DtoH", (True, True): "DtoD"}
        kind = kinds.get((on_gpu[0], on_gpu[1]))
        assert kind, "neither address is on the GPU"
        self.do(f"cuMemcpy{kind}Async_v2", target, source, size, stream)

    def launch(self, name: str, threads: int, arguments: Sequence[np.generic], stream: int) -> None:
        """Enqueue a kernel."""
        self.require_context("launch")
        self.enqueue(stream, self.kernels[name](threads, arguments))


def part(blocks: dict[int, Bytes], address: int, size: int) -> Bytes:
    """`size` bytes from there, of a block that was not freed."""
    start = base(blocks, address)
    assert start, "freed, or never allocated"
    assert address - start + size <= blocks[start].size, "outside of what was allocated, or freed"
    return blocks[start][address - start :][:size]


def base(blocks: dict[int, Bytes], address: int) -> int:
    """Where the block begins in which it is, if it is in any; 0 if all begin behind it."""
    return max((start for start in list(blocks) if start <= address), default=0)


def finish(queue: deque[Work]) -> None:
    while queue:
        queue.popleft()()
