"""The few things of CUDA that an engine needs: memory and streams from pycuda, graphs from the driver (`cuda_driver`).

pycuda's `autoinit` makes a context of its own, which clashes with that of torch or ONNX Runtime in the same process.
Here the GPU's primary context is retained, the one that they use too. pycuda 2026.1 knows no CUDA graphs; they are
five functions of the driver's own library, called with pycuda's stream. pycuda is compiled on installation, with the
CUDA toolkit; where that was not possible the driver's library does all of it.
"""

from __future__ import annotations

import importlib
import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mineral_batch.cuda import device as cuda_driver
from mineral_batch.cuda.device import DriverError
from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.cuda.device import Gpu

_NON_BLOCKING = 1

_log = logging.getLogger("mineral_batch")


def open_cuda(gpu: Gpu) -> Cuda | DriverCuda:
    """A GPU through pycuda, or through the driver's library where pycuda is not installed or does not load.

    Raises:
        BackendError: if the GPU refuses.
    """
    try:
        importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        return DriverCuda(gpu)
    except ImportError as error:
        _log.warning("pycuda does not load (%s): going on with the driver's library", error)
        return DriverCuda(gpu)
    return Cuda(gpu)


class Cuda:
    """One GPU's primary context; `with cuda.current():` makes it the thread's, around everything else.

    Args:
        gpu: whose.

    Attributes:
        name: whose functions are called.
        errors: what they raise.

    Raises:
        BackendError: if pycuda refuses.
    """

    name = "pycuda"

    def __init__(self, gpu: Gpu) -> None:
        self._driver: Any = importlib.import_module("pycuda.driver")
        self.errors = (DriverError, self._driver.Error)
        self._gpu = gpu
        self._thread = threading.get_ident()
        try:
            self._driver.init()
            self._context = self._driver.Device(gpu.index).retain_primary_context()
        except self._driver.Error as error:
            raise BackendError(f"CUDA does not start on GPU {gpu.index} ({gpu.name}): {error}") from error

    @contextmanager
    def current(self) -> Iterator[None]:
        """The block runs in this GPU's context; what was current before is current again afterwards."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise BackendError(f"CUDA failed: {error}") from error
        finally:
            self._driver.Context.pop()

    def stream(self) -> Any:
        """A new stream; `.handle` is CUDA's own.

        It does not wait for the default stream, on which torch works: while such a stream is captured, whatever another
        thread starts there would fail.
        """
        return self._driver.Stream(_NON_BLOCKING)

    def allocate(self, size: int) -> Any:
        """`size` bytes on the GPU, zeroed; `int()` of it is the address."""
        memory = self._driver.mem_alloc(size)
        self._driver.memset_d8(memory, 0, size)
        self._driver.Context.synchronize()  # zeroed on the default stream, for which ours do not wait
        return memory

    def to_gpu(self, memory: Any, array: Any, stream: Any) -> None:
        """Start to copy a contiguous array; at the full rate of the bus, and beside computation, if page-locked."""
        self._driver.memcpy_htod_async(memory, array, stream)

    def from_gpu(self, array: Any, memory: Any, stream: Any) -> None:
        """Start to copy into a page-locked array."""
        self._driver.memcpy_dtoh_async(array, memory, stream)

    def close_stream(self, stream: Any) -> None:
        """Nothing to do: pycuda gives a stream back with its last reference, which must go before the context."""

    def release(self) -> None:
        """Let go of the primary context; others may still hold it."""
        self._context.detach()
        # pycuda 2026.1 takes a context that it detaches for popped, which a primary one is not: it would stay this
        # thread's. From a thread other than the one that retained it, it does nothing at all.
        if threading.get_ident() == self._thread:
            cuda_driver.pop_context()
        else:
            cuda_driver.release_context(self._gpu.index)


class DriverCuda:
    """What `Cuda` is, without pycuda.

    Args:
        gpu: whose.

    Raises:
        BackendError: if the driver refuses.
    """

    name = "the driver's library"
    errors = (DriverError,)

    def __init__(self, gpu: Gpu) -> None:
        try:
            self._context = cuda_driver.Context(gpu)
        except DriverError as error:
            raise BackendError(f"CUDA does not start on GPU {gpu.index} ({gpu.name}): {error}") from error
        self.allocate = self._context.allocate
        self.to_gpu, self.from_gpu = self._context.to_gpu, self._context.from_gpu
        self.stream, self.current, self.release = self._context.stream, self._context.current, self._context.release

    def close_stream(self, stream: Any) -> None:
        """Give a stream back."""
        stream.close()
