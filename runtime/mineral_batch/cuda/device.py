"""What the NVIDIA driver says of the GPUs, and memory, streams and kernels from it, without a CUDA package installed.

The driver's own library comes with every driver, and unlike `nvidia-smi` it numbers the GPUs as ONNX Runtime does and
obeys CUDA_VISIBLE_DEVICES. Function names and values: the CUDA Driver API's reference.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mineral_batch.types import Pixels

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SUCCESS = 0
# Of the errors that are met: what a user can do something about.
_WORDS = {
    2: "out of memory",
    100: "no GPU is visible",
    222: "the driver is too old for this kernel",
    700: "an illegal memory access",
    803: "the driver's library and its kernel module differ: restart the machine",
}
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_MEMORY_POOLS = 115  # attribute of a GPU: it has some
_RELEASE_THRESHOLD = 4  # attribute of a pool: bytes that it keeps
_PORTABLE = 1  # page-locked for every context, so that a group of GPUs can share a buffer
_NON_BLOCKING = 1  # a stream that does not wait for the default one
_THREADS_IN_A_BLOCK = 256
# Only what this thread does is captured or forbidden meanwhile: another lane may be copying.
_CAPTURE_THIS_THREAD = 1


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs see.

    Attributes:
        index: as CUDA numbers them, from 0.
        name: such as `NVIDIA H200`.
        compute_capability: such as `9.0`.
        memory: bytes.
    """

    index: int
    name: str
    compute_capability: str
    memory: int

    @property
    def kind(self) -> str:
        """What its kernels, and with them the last digits of an answer, depend on."""
        return f"{self.name} (compute capability {self.compute_capability})"


class DriverError(Exception):
    """The driver is absent or refuses; the text says which."""


def gpus() -> list[Gpu]:
    """All that are visible.

    Raises:
        DriverError: if there is no driver, or it has no GPU to offer.
    """
    driver = _driver()
    count = ctypes.c_int()
    _call(driver.cuDeviceGetCount, ctypes.byref(count))
    return [_gpu(driver, index) for index in range(count.value)]


def first_gpu() -> Gpu | None:
    """None where there is no driver, or it shows no GPU."""
    try:
        return next(iter(gpus()), None)
    except DriverError:
        return None


def require_gpu(what: str, index: int | None = None) -> Gpu:
    """The GPU of this number, the first one by default; asked of the driver, because some libraries crash without one.

    Args:
        what: needs it, for the message.
        index: as CUDA numbers them.

    Raises:
        BackendError: if there is no driver, or it has no such GPU.
    """
    try:
        there = gpus()
    except DriverError as error:
        raise BackendError(
            f"{what} needs an NVIDIA GPU: {error}; install the NVIDIA driver, or use a machine that has one"
        ) from None
    if not there:
        raise BackendError(f"{what} needs an NVIDIA GPU, and the driver shows none: check CUDA_VISIBLE_DEVICES")
    if not 0 <= (index or 0) < len(there):
        raise BackendError(f"{what}: there is no GPU {index}, only {', '.join(str(gpu.index) for gpu in there)}")
    return there[index or 0]


def cuda_version() -> str:
    """The newest CUDA that the driver runs, such as `13.0`.

    Raises:
        DriverError: if there is no driver.
    """
    number = ctypes.c_int()
    _call(_driver().cuDriverGetVersion, ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def page_locked(shape: Sequence[int], device: int) -> Pixels:
    """A uint8 array of zeros that the GPU reads without a copy in between; freed with the array.

    Called inside `gate`, as whatever allocates.

    Raises:
        DriverError: if the memory is not to be had.
    """
    driver = _driver()
    size = prod(shape)
    address = ctypes.c_void_p()
    # Held as long as the memory, which outlives the sessions that it was made for.
    context = _retained(driver, device)
    try:
        with _current(driver, context):
            _call(driver.cuMemHostAlloc, ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
    except DriverError:
        _release(driver, device)
        raise
    assert address.value is not None
    memory = (ctypes.c_uint8 * size).from_address(address.value)
    # Not at exit: the process gives all of it back, and the driver may have stopped before.
    free = partial(_free_page_locked, driver, device, context, address)
    weakref.finalize(memory, gate.whenever, free).atexit = False
    pixels: Pixels = np.ctypeslib.as_array(memory).reshape(shape)
    pixels[...] = 0
    return pixels


def host_buffer(shape: Sequence[int], device: int) -> Pixels:
    """`page_locked`, from which the GPU reads at the full rate of its bus, or ordinary memory where there is none."""
    try:
        with gate.shared():
            return page_locked(shape, device)
    except DriverError:
        return np.zeros(tuple(shape), np.uint8)


class Context:
    """One GPU's primary context, the one that CUDA's runtime and so ONNX Runtime, torch and nvImageCodec use.

    Args:
        gpu: whose.

    Raises:
        DriverError: if the driver refuses, as everything here does.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._driver = _driver()
        self._index = gpu.index
        self._handle = _retained(self._driver, gpu.index)

    @contextmanager
    def current(self) -> Iterator[None]:
        """The block runs in this GPU's context; what was current before is current again afterwards."""
        with _current(self._driver, self._handle):
            yield

    def stream(self) -> Stream:
        """A new stream, which waits for no other."""
        return Stream(self._driver)

    def allocate(self, size: int) -> Memory:
        """`size` bytes on the GPU, zeroed."""
        return Memory(self._driver, size)

    def free_memory(self) -> int:
        """Bytes that can still be allocated on the GPU, by whomever."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        _call(self._driver.cuMemGetInfo_v2, ctypes.byref(free), ctypes.byref(total))
        return free.value

    def keep_freed(self, size: int) -> None:
        """Let the process keep up to `size` bytes that were freed in a stream's order, as nvImageCodec's pictures are.

        As it is delivered CUDA keeps none: whatever is free when anyone synchronizes goes back to the system, and is
        mapped anew when it is allocated. A GPU without such memory has nothing to keep.
        """
        device, has_pools, pool = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
        _call(self._driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(self._index))
        _call(self._driver.cuDeviceGetAttribute, ctypes.byref(has_pools), ctypes.c_int(_MEMORY_POOLS), device)
        if has_pools.value:
            _call(self._driver.cuDeviceGetDefaultMemPool, ctypes.byref(pool), device)
            kept = ctypes.pointer(ctypes.c_uint64(size))
            _call(self._driver.cuMemPoolSetAttribute, pool, ctypes.c_int(_RELEASE_THRESHOLD), kept)

    def to_gpu(self, memory: Memory, array: NDArray[Any], stream: Stream) -> None:
        """Start to copy a contiguous array; at the full rate of the bus, and beside computation, if page-locked."""
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        _call(self._driver.cuMemcpyHtoDAsync_v2, memory.address, source, size, ctypes.c_void_p(stream.handle))

    def from_gpu(self, array: NDArray[Any], memory: Memory, stream: Stream) -> None:
        """Start to copy into a page-locked array."""
        target, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        _call(self._driver.cuMemcpyDtoHAsync_v2, target, memory.address, size, ctypes.c_void_p(stream.handle))

    def copy(self, target: int, source: int, size: int, stream: Stream) -> None:
        """Start to copy bytes from one address on the GPU to another."""
        addresses = ctypes.c_uint64(target), ctypes.c_uint64(source)
        _call(self._driver.cuMemcpyDtoDAsync_v2, *addresses, ctypes.c_size_t(size), ctypes.c_void_p(stream.handle))

    def kernel(self, ptx: str, name: str) -> Kernel:
        """A kernel that the driver compiles for this GPU."""
        return Kernel(self._driver, ptx, name)

    def release(self) -> None:
        """Let go of the context; others may still hold it."""
        _release(self._driver, self._index)


class Stream:
    """An order of work on the GPU.

    Attributes:
        handle: CUDA's own.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        pointer = ctypes.c_void_p()
        _call(driver.cuStreamCreate, ctypes.byref(pointer), ctypes.c_uint(_NON_BLOCKING))
        self.handle = pointer.value or 0

    def synchronize(self) -> None:
        """Wait for everything that was enqueued."""
        _call(self._driver.cuStreamSynchronize, ctypes.c_void_p(self.handle))

    def close(self) -> None:
        """Give it back."""
        _call(self._driver.cuStreamDestroy_v2, ctypes.c_void_p(self.handle))


class Memory:
    """Bytes on the GPU; `int()` of it is where."""

    def __init__(self, driver: Any, size: int) -> None:
        self._driver = driver
        self.address = ctypes.c_uint64()
        _call(driver.cuMemAlloc_v2, ctypes.byref(self.address), ctypes.c_size_t(size))
        _call(driver.cuMemsetD8_v2, self.address, ctypes.c_ubyte(0), ctypes.c_size_t(size))
        # That went to the default stream, which the others do not wait for.
        _call(driver.cuCtxSynchronize)

    def __int__(self) -> int:
        return self.address.value

    def free(self) -> None:
        """Give them back."""
        _call(self._driver.cuMemFree_v2, self.address)


class Graph:
    """Work on a stream, recorded once and then started by one call instead of one for each kernel.

    Args:
        stream: with CUDA's own `handle`; also the one that it is launched on.
        work: enqueues on that stream, and allocates nothing.

    Raises:
        DriverError: if the work cannot be captured.
    """

    def __init__(self, stream: Any, work: Callable[[], None]) -> None:
        self._driver = _driver()
        self._stream = ctypes.c_void_p(stream.handle)
        self._executable = ctypes.c_void_p()
        recorded, unused = self._record(work), ctypes.c_ulonglong(0)
        try:
            _call(self._driver.cuGraphInstantiateWithFlags, ctypes.byref(self._executable), recorded, unused)
        finally:
            _call(self._driver.cuGraphDestroy, recorded)

    def _record(self, work: Callable[[], None]) -> ctypes.c_void_p:
        recorded = ctypes.c_void_p()
        _call(self._driver.cuStreamBeginCapture_v2, self._stream, ctypes.c_int(_CAPTURE_THIS_THREAD))
        try:
            work()
        except BaseException:
            # A stream that is left capturing is of no more use; what it says is not what went wrong.
            if self._driver.cuStreamEndCapture(self._stream, ctypes.byref(recorded)) == _SUCCESS:
                self._driver.cuGraphDestroy(recorded)
            raise
        _call(self._driver.cuStreamEndCapture, self._stream, ctypes.byref(recorded))
        return recorded

    def launch(self) -> None:
        """Start the recorded work on its stream."""
        _call(self._driver.cuGraphLaunch, self._executable, self._stream)

    def close(self) -> None:
        """Give the executable graph back."""
        _call(self._driver.cuGraphExecDestroy, self._executable)


class Kernel:
    """A function that runs on the GPU."""

    def __init__(self, driver: Any, ptx: str, name: str) -> None:
        self._driver = driver
        self._module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        _call(driver.cuModuleLoadData, ctypes.byref(self._module), ctypes.c_char_p(ptx.encode()))
        _call(driver.cuModuleGetFunction, ctypes.byref(self._function), self._module, ctypes.c_char_p(name.encode()))

    def launch(self, count: int, arguments: Sequence[Any], stream: Stream) -> None:
        """Start it in at least `count` threads, with arguments of ctypes' types."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(argument) for argument in arguments))
        blocks = -(-count // _THREADS_IN_A_BLOCK)
        shape = [ctypes.c_uint(size) for size in (blocks, 1, 1, _THREADS_IN_A_BLOCK, 1, 1, 0)]
        _call(self._driver.cuLaunchKernel, self._function, *shape, ctypes.c_void_p(stream.handle), pointers, None)

    def close(self) -> None:
        """Unload it."""
        _call(self._driver.cuModuleUnload, self._module)


class _Gate:
    """Lets in any number of workers, or one that is alone; whoever wants to be alone comes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._workers = self._waiting = 0
        self._is_taken = False
        self._later: list[Callable[[], None]] = []

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_taken or self._waiting))
            self._workers += 1
        try:
            yield
        finally:
            with self._changed:
                self._workers -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With nobody else inside."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not (self._is_taken or self._workers))
            self._waiting -= 1
            self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()
                later, self._later = self._later, []
            for work in later:
                self.whenever(work)

    def whenever(self, work: Callable[[], None]) -> None:
        """Do it beside others: now, or when whoever is alone leaves. For finalizers, which must not wait."""
        with self._changed:
            if self._is_taken:
                self._later.append(work)
                return
            self._workers += 1
        try:
            work()
        finally:
            with self._changed:
                self._workers -= 1
                self._changed.notify_all()


#: ONNX Runtime captures CUDA graphs in CUDA's global mode (core/providers/cuda/cuda_graph.cc): meanwhile an allocation
#: or a plain copy fails in every other thread of the process, whichever GPU it is for, and spoils the capture. So
#: whoever may capture works alone, everybody else shared.
gate = _Gate()


@cache
def _driver() -> Any:
    """The library, started."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DriverError(f"no NVIDIA driver ({_LIBRARY} does not load)") from None
    _call(driver.cuInit, ctypes.c_uint(0))
    return driver


def _gpu(driver: Any, index: int) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    _call(driver.cuDeviceGetName, name, ctypes.c_int(len(name)), device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(major), ctypes.c_int(_COMPUTE_CAPABILITY_MAJOR), device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(minor), ctypes.c_int(_COMPUTE_CAPABILITY_MINOR), device)
    _call(driver.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def pop_context() -> None:
    """Make what was current before this thread's present context current again."""
    _driver().cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def release_context(index: int) -> None:
    """Let go of a GPU's primary context once."""
    _release(_driver(), index)


def _release(driver: Any, index: int) -> None:
    device = ctypes.c_int()
    _call(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    _call(driver.cuDevicePrimaryCtxRelease_v2, device)


def _retained(driver: Any, index: int) -> ctypes.c_void_p:
    """The GPU's primary context, held."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    _call(driver.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    return context


@contextmanager
def _current(driver: Any, context: ctypes.c_void_p) -> Iterator[None]:
    """The context is this thread's inside the block."""
    _call(driver.cuCtxPushCurrent_v2, context)
    try:
        yield
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))


def _free_page_locked(driver: Any, device: int, context: ctypes.c_void_p, address: ctypes.c_void_p) -> None:
    """From whichever thread dropped the last view: it need not have a context, without which nothing is freed."""
    with suppress(DriverError):  # a GPU that failed takes its memory along
        with _current(driver, context):
            driver.cuMemFreeHost(address)
        _release(driver, device)


def _call(function: Any, *arguments: Any) -> None:
    result = function(*arguments)
    if result != _SUCCESS:
        words = f" ({_WORDS[result]})" if result in _WORDS else ""
        raise DriverError(f"the NVIDIA driver answers {function.__name__} with CUDA error {result}{words}")
