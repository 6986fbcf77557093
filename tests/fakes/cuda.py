"""Fake GPUs, with fakes of cuda-core, cuda-bindings, pycuda and of the driver as ctypes calls it.

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
from functools import partial, wraps
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


def core_module(cuda: Cuda) -> ModuleType:
    """`cuda.core` 1.2, as far as `mineral_batch.cuda.core` uses it."""
    module = ModuleType("cuda.core")
    vars(module).update(
        Device=lambda index: Device(cuda, index),
        Buffer=SimpleNamespace(from_handle=partial(Buffer, cuda)),
        Stream=SimpleNamespace(from_handle=partial(Stream, cuda)),
        LegacyPinnedMemoryResource=lambda: SimpleNamespace(allocate=partial(PinnedBuffer, cuda)),
        ProgramOptions=lambda arch: arch,
        Program=partial(Program, cuda),
        ObjectCode=SimpleNamespace(from_ptx=lambda code: ObjectCode(cuda, code.decode())),
        LaunchConfig=lambda grid, block: SimpleNamespace(grid=grid, block=block),
        launch=partial(launch, cuda),
    )
    return module


class CUDAError(Exception):
    """cuda-core's."""

    __module__ = "cuda.core._utils.cuda_utils"


def call(cuda: Cuda, name: str, *values: Any) -> Any:
    """A function of the driver, as cuda-core calls it."""
    try:
        return cuda.do(name, *values) if name.startswith("cu") else getattr(cuda, name)(*values)
    except CudaError as error:
        raise CUDAError(f"{CUresult(error.code).name}: what it means.") from None


def driver_module(cuda: Cuda) -> ModuleType:
    """`cuda.bindings.driver`: every function gives its result and the values."""
    module = ModuleType("cuda.bindings.driver")

    def bound(name: str, driver_name: str) -> Callable[..., tuple[Any, ...]]:
        def function(*values: Any) -> tuple[Any, ...]:
            try:
                answer = cuda.do(driver_name, *values)
            except CudaError as error:
                return CUresult(error.code), None
            return CUresult.CUDA_SUCCESS, answer

        return function

    names = {name: name for name in vars(Cuda) if name.startswith(("cuCtx", "cuDevice", "cuMemPool", "cuMemHost"))}
    names["cuMemGetInfo"] = "cuMemGetInfo_v2"
    vars(module).update({name: bound(name, driver_name) for name, driver_name in names.items()})
    attributes = SimpleNamespace(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD=4)
    vars(module).update(CUresult=CUresult, CUmemPool_attribute=attributes, cuuint64_t=int)
    return module


class Device:
    def __init__(self, cuda: Cuda, index: int) -> None:
        self.cuda, self.index = cuda, index
        self.properties = SimpleNamespace(memory_pools_supported=True)

    def set_current(self) -> None:
        """Retains the primary context once for the process, and replaces the thread's context."""
        if CONTEXTS + self.index not in self.cuda.retained:
            call(self.cuda, "cuDevicePrimaryCtxRetain", self.index)
        call(self.cuda, "cuCtxSetCurrent", CONTEXTS + self.index)

    def create_stream(self) -> Stream:
        return Stream(self.cuda, call(self.cuda, "cuStreamCreate", 1))

    def allocate(self, size: int, *, stream: Stream) -> Buffer:
        return Buffer.allocated(self.cuda, size)


class Stream:
    def __init__(self, cuda: Cuda, handle: int) -> None:
        self.cuda, self.handle = cuda, handle

    def sync(self) -> None:
        call(self.cuda, "cuStreamSynchronize", self.handle)

    def close(self) -> None:
        call(self.cuda, "cuStreamDestroy_v2", self.handle)

    def create_graph_builder(self) -> GraphBuilder:
        return GraphBuilder(self)


class GraphBuilder:
    """Ends the capture when it is closed, as cuda-core does."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.graph = stream, 0

    def begin_building(self, mode: str) -> None:
        call(self.stream.cuda, "cuStreamBeginCapture_v2", self.stream.handle, {"thread_local": 1}[mode])

    def end_building(self) -> GraphBuilder:
        self.graph = call(self.stream.cuda, "cuStreamEndCapture", self.stream.handle)
        return self

    def complete(self) -> Graph:
        return Graph(self.stream.cuda, call(self.stream.cuda, "cuGraphInstantiateWithFlags", self.graph, 0))

    def close(self) -> None:
        if self.stream.handle in self.stream.cuda.capturing:
            self.end_building()
        if self.graph:
            self.stream.cuda.graphs.pop(self.graph)


class Graph:
    def __init__(self, cuda: Cuda, executable: int) -> None:
        self.cuda, self.executable = cuda, executable

    def launch(self, stream: Stream) -> None:
        call(self.cuda, "cuGraphLaunch", self.executable, stream.handle)

    def close(self) -> None:
        call(self.cuda, "cuGraphExecDestroy", self.executable)


class Buffer:
    """Bytes at an address; both sides of a copy have the same size."""

    def __init__(self, cuda: Cuda, handle: int, size: int) -> None:
        self.cuda, self.handle, self.size = cuda, handle, size

    @classmethod
    def allocated(cls, cuda: Cuda, size: int) -> Buffer:
        return cls(cuda, call(cuda, "cuMemAlloc_v2", size), size)

    def fill(self, value: int, *, stream: Stream) -> None:
        work: Work = lambda: self.cuda.at(self.handle, self.size).fill(value)  # noqa: E731
        call(self.cuda, "enqueue", stream.handle, work)

    def copy_from(self, source: Buffer, *, stream: Stream) -> None:
        assert source.size == self.size
        call(self.cuda, "copy", self.handle, source.handle, self.size, stream.handle)

    def close(self, stream: Stream) -> None:
        call(self.cuda, "cuMemFree_v2", self.handle)


class PinnedBuffer:
    def __init__(self, cuda: Cuda, size: int) -> None:
        self.cuda, self.handle = cuda, call(cuda, "cuMemHostAlloc", size)

    def __dlpack__(self, **options: Any) -> Any:
        return self.cuda.pinned[self.handle].view(np.int8).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.cuda.pinned[self.handle].__dlpack_device__()

    def close(self) -> None:
        call(self.cuda, "cuMemFreeHost", self.handle)


class Program:
    """NVRTC's, for the GPU's own instructions."""

    def __init__(self, cuda: Cuda, code: str, language: str, arch: str) -> None:
        assert (language, arch[:3]) == ("c++", "sm_")
        if not cuda.has_nvrtc:
            raise RuntimeError("Failure finding libnvrtc.so.13")
        self.cuda, self.code = cuda, code

    def compile(self, target: str) -> ObjectCode:
        assert target == "cubin"
        return ObjectCode(self.cuda, self.code)


class ObjectCode:
    def __init__(self, cuda: Cuda, code: str) -> None:
        self.cuda, self.code = cuda, code

    def get_kernel(self, name: str) -> str:
        assert f".visible .entry {name}(" in self.code or f'extern "C" __global__ void {name}(' in self.code
        call(self.cuda, "require_context", "load a kernel")
        self.cuda.compiled.append(self.code)
        return name


def launch(cuda: Cuda, stream: Stream, config: Any, kernel: str, *arguments: np.generic) -> None:
    assert config.block <= 1024, "too many threads in a block"
    assert all(isinstance(one, np.generic) for one in arguments), "their sizes would be guessed"
    call(cuda, "launch", kernel, config.grid * config.block, arguments, stream.handle)


class PyCuda(ModuleType):
    """`pycuda.driver` 2026.1, as far as `mineral_batch.cuda.pycuda` uses it."""

    Error = CudaError
    host_alloc_flags = SimpleNamespace(PORTABLE=1)

    def __init__(self, cuda: Cuda) -> None:
        super().__init__("pycuda.driver")
        self.do = do = cuda.do
        self.cuda = cuda
        self.Stream, self.mem_alloc = partial(PyStream, do), partial(PyMemory, do)
        self.Context = SimpleNamespace(
            pop=partial(do, "cuCtxPopCurrent_v2"), synchronize=partial(do, "cuCtxSynchronize")
        )

    def init(self) -> None:
        pass

    def Device(self, index: int) -> SimpleNamespace:
        def retain_primary_context() -> SimpleNamespace:
            context = self.do("cuDevicePrimaryCtxRetain", self.do("cuDeviceGet", index))
            return SimpleNamespace(push=partial(self.do, "cuCtxPushCurrent_v2", context))

        return SimpleNamespace(retain_primary_context=retain_primary_context)

    def memset_d8(self, memory: PyMemory, value: int, size: int) -> None:
        self.do("cuMemsetD8_v2", int(memory), value, size)

    def memcpy_htod_async(self, target: int, array: NDArray[Any], stream: PyStream) -> None:
        assert array.flags.c_contiguous
        self.do("cuMemcpyHtoDAsync_v2", target, array.ctypes.data, array.nbytes, stream.handle)

    def memcpy_dtoh_async(self, array: NDArray[Any], source: int, stream: PyStream) -> None:
        assert array.flags.c_contiguous
        self.do("cuMemcpyDtoHAsync_v2", array.ctypes.data, source, array.nbytes, stream.handle)

    def pagelocked_zeros(self, size: int, kind: str, mem_flags: int) -> NDArray[Any]:
        assert (kind, mem_flags) == ("uint8", 1)
        address = self.do("cuMemHostAlloc", size)
        memory = self.cuda.pinned[address]
        memory.fill(0)
        free = partial(self.do, "cuMemFreeHost", address)
        return memory.view(type("Pinned", (np.ndarray,), {"base": SimpleNamespace(free=free)}))


class PyStream:
    def __init__(self, do: Callable[..., Any], flags: int = 0) -> None:
        self.do, self.handle = do, do("cuStreamCreate", flags)
        self.synchronize = partial(do, "cuStreamSynchronize", self.handle)

    def __del__(self) -> None:
        self.do("cuStreamDestroy_v2", self.handle)


class PyMemory:
    def __init__(self, do: Callable[..., Any], size: int) -> None:
        self.at = do("cuMemAlloc_v2", size)
        self.free = partial(do, "cuMemFree_v2", self.at)

    def __int__(self) -> int:
        return int(self.at)
