"""One GPU through pycuda; its graphs are cuda-core's, as pycuda 2026.1 has none.

pycuda's `autoinit` creates a context of its own, which clashes with that of torch or ONNX Runtime in the same process.
Here the GPU's primary context is retained, which they use too.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda.core import CoreGraph, driver_errors
from mineral_batch.cuda.probe import DriverError
from mineral_batch.errors import BackendError
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mineral_batch.cuda.interface import Memory, Stream
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.types import Pixels

_NON_BLOCKING = 1


class PycudaContext:
    """See `mineral_batch.cuda.interface.Context`.

    Args:
        gpu: the GPU to open.

    Raises:
        BackendError: if pycuda refuses.
    """

    package = "pycuda"

    def __init__(self, gpu: Gpu) -> None:
        self._driver: Any = importlib.import_module("pycuda.driver")
        self.errors: tuple[type[Exception], ...] = (DriverError, self._driver.Error)
        try:
            self._context = _primary_context(self._driver, gpu.index)
        except self._driver.Error as error:
            raise BackendError(f"CUDA does not start on GPU {gpu.index} ({gpu.name}): {error}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the GPU's primary context the thread's; raises `DriverError` for what fails in the block, too."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise DriverError(f"CUDA failed: {error}", getattr(error, "code", None)) from error
        finally:
            self._driver.Context.pop()

    def stream(self) -> PycudaStream:
        """Create a stream."""
        return PycudaStream(self._driver.Stream(_NON_BLOCKING))

    def allocate(self, size: int) -> PycudaMemory:
        """Allocate zeroed bytes on the GPU."""
        memory = self._driver.mem_alloc(size)
        self._driver.memset_d8(memory, 0, size)
        self._driver.Context.synchronize()  # zeroed on the default stream, for which ours do not wait
        return PycudaMemory(memory)

    def pinned(self, size: int) -> PycudaPinned:
        """Allocate zeroed page-locked bytes."""
        return PycudaPinned(self._driver, size)

    def to_gpu(self, memory: Memory, array: NDArray[Any], stream: Stream) -> None:
        """Enqueue the copy of a contiguous array."""
        self._driver.memcpy_htod_async(memory.address, array, _pycuda_stream(stream))

    def from_gpu(self, array: NDArray[Any], memory: Memory, stream: Stream) -> None:
        """Enqueue a copy into an array in pinned memory."""
        self._driver.memcpy_dtoh_async(array, memory.address, _pycuda_stream(stream))

    def capture(self, stream: Stream, work: Callable[[], None]) -> CoreGraph:
        """Record what `work` enqueues on the stream, with cuda-core."""
        try:
            core = importlib.import_module("cuda.core")
        except ImportError as error:
            raise DriverError(
                f"pycuda has no CUDA graphs, and cuda-core does not load ({error}): {pip_install('gpu')}"
            ) from None
        with driver_errors():
            return CoreGraph(core, stream, work)

    def close(self) -> None:
        """Nothing to do: the primary context stays for the process, as it does for ONNX Runtime."""


@cache
def _primary_context(driver: Any, index: int) -> Any:
    """The GPU's primary context, retained once: pycuda can release one only in the thread that retained it."""
    driver.init()
    return driver.Device(index).retain_primary_context()


class PycudaStream:
    """See `mineral_batch.cuda.interface.Stream`."""

    def __init__(self, stream: Any) -> None:
        self.pycuda: Any = stream
        self.handle = int(stream.handle)

    def synchronize(self) -> None:
        """Wait for everything enqueued so far."""
        self.pycuda.synchronize()

    def close(self) -> None:
        """Destroy the stream, which pycuda does with its last reference."""
        self.pycuda = None


class PycudaMemory:
    """See `mineral_batch.cuda.interface.Memory`."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory
        self.address = int(memory)

    def close(self) -> None:
        """Free the bytes."""
        self._memory.free()


class PycudaPinned:
    """See `mineral_batch.cuda.interface.PinnedMemory`."""

    def __init__(self, driver: Any, size: int) -> None:
        self.array: Pixels = driver.pagelocked_zeros(size, "uint8", mem_flags=driver.host_alloc_flags.PORTABLE)

    def close(self) -> None:
        """Free it."""
        self.array.base.free()  # type: ignore[union-attr]


def _pycuda_stream(stream: Stream) -> Any:
    assert isinstance(stream, PycudaStream)
    return stream.pycuda
