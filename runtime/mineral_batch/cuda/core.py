"""One GPU through NVIDIA's cuda-core: streams, memory, graphs and kernels.

Three things cuda-core 1.2 has no call for, so they are cuda-bindings' (https://nvidia.github.io/cuda-python): asking
which context is current, as `Device.set_current` replaces it without returning it
(https://nvidia.github.io/cuda-python/cuda-core/latest/generated/cuda.core.Device.html#cuda.core.Device.set_current);
the free memory of a GPU; and how much freed memory the default pool keeps, which `DeviceMemoryResource.attributes` only
reads (https://nvidia.github.io/cuda-python/cuda-core/latest/generated/cuda.core.DeviceMemoryResource.html).
"""

from __future__ import annotations

import importlib
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.probe import DriverError
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mineral_batch.cuda.interface import Memory, Stream
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.types import Pixels

_THREADS_PER_BLOCK = 256
# CU_MEMHOSTREGISTER_PORTABLE: page-locked for all contexts, not only the one that is current.
_PORTABLE = 1

_log = logging.getLogger("mineral_batch")


@contextmanager
def driver_errors() -> Iterator[None]:
    """Turn cuda-core's errors into `DriverError`, in a block or, as a decorator, in a method.

    cuda-core exports no class of them: they are known by their module.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("cuda."):
            raise
        name, _, explanation = str(error).partition(":")
        results = importlib.import_module("cuda.bindings.driver").CUresult
        code = int(getattr(results, name, 0)) or None
        words = f"CUDA error {code} ({name}:{explanation})" if code else str(error)
        raise DriverError(" ".join(words.split()), code) from error


class CoreContext:
    """See `mineral_batch.cuda.interface.Context`; it also runs kernels of our own.

    Args:
        gpu: the GPU to open.

    Raises:
        DriverError: if cuda-core is not installed, or the driver refuses.
    """

    package = "cuda-core"
    errors: tuple[type[Exception], ...] = (DriverError,)

    def __init__(self, gpu: Gpu) -> None:
        try:
            self._core: Any = importlib.import_module("cuda.core")
            self._driver: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise DriverError(f"cuda-core is not installed ({error}): {pip_install('gpu')}") from None
        self._gpu = gpu
        with self.current():
            # Memory that is allocated in a stream's order is ready for, and freed by, what runs on that stream.
            self._allocations = self._device.create_stream()

    @property
    def _device(self) -> Any:
        """This thread's object for the GPU: cuda-core has one in each thread."""
        return self._core.Device(self._gpu.index)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's primary context the thread's in the block."""
        before = self._ask("cuCtxGetCurrent")
        with driver_errors():
            self._device.set_current()
        try:
            yield
        finally:
            self._driver.cuCtxSetCurrent(before)

    def _ask(self, function: str, *arguments: Any) -> Any:
        """The first result of a function of the driver."""
        result, *values = getattr(self._driver, function)(*arguments)
        if int(result):
            raise DriverError(f"{function} failed with CUDA error {int(result)} ({result.name})", int(result))
        return values[0] if values else None

    @driver_errors()
    def stream(self) -> CoreStream:
        """Create a stream; cuda-core's do not wait for the default one unless told to."""
        return CoreStream(self._device.create_stream())

    @driver_errors()
    def allocate(self, size: int) -> CoreMemory:
        """Allocate zeroed bytes on the GPU."""
        buffer = self._device.allocate(size, stream=self._allocations)
        buffer.fill(0, stream=self._allocations)
        self._allocations.sync()
        return CoreMemory(buffer, self._allocations)

    @driver_errors()
    def pinned(self, size: int) -> CorePinned:
        """Allocate zeroed page-locked bytes, page-locked for every GPU of the process."""
        return CorePinned(self._core.LegacyPinnedMemoryResource(), size)

    def register(self, array: Pixels) -> None:
        """Page-lock memory that the process has already, for every GPU of the process.

        cuda-core has no call for it, so it is the driver's.
        """
        self._ask("cuMemHostRegister", array.ctypes.data, array.nbytes, _PORTABLE)

    def unregister(self, address: int) -> None:
        """End what `register` did."""
        self._ask("cuMemHostUnregister", address)

    def to_gpu(self, memory: Memory, array: NDArray[Any], stream: Stream) -> None:
        """Enqueue the copy of a contiguous array."""
        self.copy(memory.address, array.ctypes.data, array.nbytes, stream)

    def from_gpu(self, array: NDArray[Any], memory: Memory, stream: Stream) -> None:
        """Enqueue a copy into an array in pinned memory."""
        self.copy(array.ctypes.data, memory.address, array.nbytes, stream)

    @driver_errors()
    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Enqueue the copy of `size` bytes between two addresses, each of the GPU or of the host."""
        buffer = self._core.Buffer.from_handle
        buffer(target, size).copy_from(buffer(source, size), stream=_core_stream(self._core, stream))

    @driver_errors()
    def capture(self, stream: Stream, work: Callable[[], None]) -> CoreGraph:
        """Record what `work` enqueues on the stream; allocations and copies of other threads go on meanwhile."""
        return CoreGraph(self._core, stream, work)

    @driver_errors()
    def kernel(self, source: str, ptx: str, name: str) -> CoreKernel:
        """Compile a kernel for this GPU.

        Args:
            source: CUDA C++; NVRTC compiles it, where that library is installed.
            ptx: the same kernel for the driver to compile, where it is not.
            name: of the function, declared `extern "C"`.
        """
        chip = self._gpu.compute_capability.replace(".", "")
        try:
            options = self._core.ProgramOptions(arch=f"sm_{chip}")
            kernel = self._core.Program(source, "c++", options).compile("cubin").get_kernel(name)
        except Exception as error:  # no NVRTC, one that does not know this GPU, or too new for the driver
            _log.debug("NVRTC does not compile the kernel (%s): the driver compiles its PTX", error)
            kernel = self._core.ObjectCode.from_ptx(ptx.encode()).get_kernel(name)
        return CoreKernel(self._core, kernel)

    def free_memory(self) -> int:
        """Bytes that any program can still allocate on the GPU."""
        return int(self._ask("cuMemGetInfo"))

    @driver_errors()
    def keep_freed(self, size: int) -> None:
        """Let the process keep up to `size` bytes of freed stream-ordered memory, such as nvImageCodec's images.

        CUDA's default is to keep none: all that is free when anyone synchronizes goes back to the system, and is mapped
        anew when it is allocated. cuda-core's default is to keep all. A GPU without memory pools keeps nothing.
        """
        if not self._device.properties.memory_pools_supported:
            return
        pool = self._ask("cuDeviceGetDefaultMemPool", self._ask("cuDeviceGet", self._gpu.index))
        threshold = self._driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self._ask("cuMemPoolSetAttribute", pool, threshold, self._driver.cuuint64_t(size))

    @driver_errors()
    def close(self) -> None:
        """Destroy the context's own stream; the primary context stays for the process, as it does for ONNX Runtime."""
        with self.current():
            self._allocations.close()


class CoreStream:
    """See `mineral_batch.cuda.interface.Stream`."""

    def __init__(self, stream: Any) -> None:
        self.core = stream
        self.handle = int(stream.handle)

    @driver_errors()
    def synchronize(self) -> None:
        """Wait for everything enqueued so far."""
        self.core.sync()

    @driver_errors()
    def close(self) -> None:
        """Destroy the stream."""
        self.core.close()


class CoreMemory:
    """See `mineral_batch.cuda.interface.Memory`."""

    def __init__(self, buffer: Any, stream: Any) -> None:
        self._buffer, self._stream = buffer, stream
        self.address = int(buffer.handle)

    @driver_errors()
    def close(self) -> None:
        """Free the bytes."""
        self._buffer.close(self._stream)


class CorePinned:
    """See `mineral_batch.cuda.interface.PinnedMemory`."""

    def __init__(self, resource: Any, size: int) -> None:
        self._buffer = resource.allocate(size)
        self.array[...] = 0

    @property
    def array(self) -> Pixels:
        """A new array (size,) uint8 of the memory: whoever has it knows when its last view is gone."""
        return np.from_dlpack(self._buffer).view(np.uint8)

    @driver_errors()
    def close(self) -> None:
        """Free it, in a thread whose current context is a GPU's."""
        self._buffer.close()


class CoreGraph:
    """See `mineral_batch.cuda.interface.Graph`; of any package's stream.

    Args:
        core: the module `cuda.core`.
        stream: to record on, and to launch on.
        work: enqueues on the stream.
    """

    def __init__(self, core: Any, stream: Stream, work: Callable[[], None]) -> None:
        self._stream = _core_stream(core, stream)
        builder = self._stream.create_graph_builder()
        builder.begin_building("thread_local")  # other threads may allocate and copy meanwhile
        try:
            with capture_lock.capturing():
                work()
                builder.end_building()
            self._graph = builder.complete()
        finally:
            builder.close()  # also ends a capture that failed

    @driver_errors()
    def launch(self) -> None:
        """Start the recorded work on its stream."""
        self._graph.launch(self._stream)

    @driver_errors()
    def close(self) -> None:
        """Destroy the graph."""
        self._graph.close()


class CoreKernel:
    """A function that runs on the GPU."""

    def __init__(self, core: Any, kernel: Any) -> None:
        self._core, self._kernel = core, kernel

    @driver_errors()
    def launch(self, count: int, arguments: Sequence[np.generic], stream: Stream) -> None:
        """Enqueue it for at least `count` threads, with arguments of NumPy's scalar types."""
        config = self._core.LaunchConfig(grid=-(-count // _THREADS_PER_BLOCK), block=_THREADS_PER_BLOCK)
        self._core.launch(_core_stream(self._core, stream), config, self._kernel, *arguments)

    def close(self) -> None:
        """Drop it; cuda-core keeps the loaded code for the process."""
        self._kernel = None


def _core_stream(core: Any, stream: Stream) -> Any:
    """cuda-core's object for a stream: the one that it made, or one around another package's."""
    return stream.core if isinstance(stream, CoreStream) else core.Stream.from_handle(stream.handle)
