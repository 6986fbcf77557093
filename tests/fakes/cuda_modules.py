"""Fakes of cuda-core, cuda-bindings and pycuda on the fake GPUs of `cuda`."""

from __future__ import annotations

from functools import partial
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda import CONTEXTS, Cuda, CudaError, CUresult

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .cuda import Work


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
