"""GPUs that only exist here: the driver's library as ctypes calls it, and whatever is wrong with how it is used.

A stream runs nothing until it is waited for. Memory is known by its address, holds rubbish at first, and lies further
apart than 32 bits reach. Whatever is used without a context, after it was freed or outside of what was allocated is an
error. It says nothing about a real GPU.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from functools import wraps
from itertools import count
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda import device as cuda_driver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pytest
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Work = Callable[[], None]
    #: The number of threads and the addresses of the arguments -> what the stream runs.
    Kernel = Callable[[int, Sequence[int]], Work]

ANYWHERE = ("cuDevice", "cuDriver", "cuCtxPush", "cuCtxPop")  # what needs no context
CONTEXTS = 1 << 50  # the primary context of GPU 0; that of GPU 1 is the next one
POOLS = 1 << 51  # the memory pool of GPU 0


class CudaError(Exception):
    """A function of the driver that answers with an error; also pycuda's exception."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} failed: CUDA error {code}")
        self.code = code


class Cuda:
    """NVIDIA L4s, and the functions of the driver's library, which have its names and take and give Python's values.

    Args:
        gpus: how many.

    Attributes:
        log: what was done, but for what every program does.
        errors: function -> the error that it answers with.
        kernels: name -> what it does; it is launched if a module has a kernel of that name.
        memory, pinned: address -> bytes on a GPU, page-locked bytes.
        retained: contexts, each as often as it is held.
        free: bytes that are said to be free on each GPU.
        kept: GPU -> bytes that its memory pool keeps.
    """

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
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
        self.modules: dict[int, bytes] = {}
        self.functions: dict[int, tuple[int, str]] = {}
        self._handles = count(1 << 40, 1 << 32)
        self._threads = threading.local()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Be the driver of this machine."""
        names = [name for name in vars(Cuda) if name.startswith("cu")]
        library = SimpleNamespace(**{name: self._exported(name) for name in names})
        monkeypatch.setattr(cuda_driver, "_driver", lambda: library)

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
        """Page-locked memory may live on, and holds the context for itself."""
        graphs = (self.capturing, self.graphs, self.executables)
        assert (self.memory, self.streams, graphs, self.modules) == ({}, {}, ({}, {}, {}), {})
        assert (len(self.retained), self.stack, len(self.default_stream)) == (len(self.pinned), [], 0)

    def say(self, what: str) -> None:
        self.require_context(what)
        self.log.append(what)

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
        buffer.value = b"NVIDIA L4"

    def cuDeviceGetAttribute(self, which: int, device: int) -> int:
        return {75: 8, 76: 9, 115: 1}[which]

    def cuDeviceTotalMem_v2(self, device: int) -> int:
        return 24 << 30

    def cuDeviceGetDefaultMemPool(self, device: int) -> int:
        return POOLS + device

    def cuMemPoolSetAttribute(self, pool: int, which: int, value: Any) -> None:
        assert which == 4, "not the threshold above which memory is given back"
        assert isinstance(value.contents, ctypes.c_uint64)
        self.kept[pool - POOLS] = value.contents.value

    def cuMemGetInfo_v2(self) -> int:
        """Both what is free and what there is: nobody asks for the latter."""
        return self.free

    def cuDevicePrimaryCtxRetain(self, device: int) -> int:
        assert device < self.gpus
        self.retained.append(CONTEXTS + device)
        return CONTEXTS + device

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> None:
        self.retained.remove(CONTEXTS + device)

    def cuCtxPushCurrent_v2(self, context: int) -> None:
        assert context in self.retained
        self.stack.append(context)

    def cuCtxPopCurrent_v2(self) -> Any:
        return self.stack.pop()

    def cuCtxSynchronize(self) -> None:
        self.say("wait for all")
        for queue in (self.default_stream, *self.streams.values()):
            finish(queue)

    def cuMemHostAlloc(self, size: int, flags: int) -> int:
        assert flags == 1, "not for every GPU"
        memory = np.full(size, 77, np.uint8)
        self.pinned[memory.ctypes.data] = memory
        return memory.ctypes.data

    def cuMemFreeHost(self, address: int) -> None:
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

    def cuModuleLoadData(self, code: bytes) -> int:
        self.modules[module := next(self._handles)] = code
        return module

    def cuModuleGetFunction(self, module: int, name: bytes) -> int:
        assert b".visible .entry %b(" % name in self.modules[module]
        self.functions[function := next(self._handles)] = (module, name.decode())
        return function

    def cuModuleUnload(self, module: int) -> None:
        del self.modules[module]

    def cuLaunchKernel(self, function: int, *rest: Any) -> None:
        *shape, shared, stream, arguments, extra = rest
        module, name = self.functions[function]
        assert module in self.modules, "unloaded"
        assert (shared, extra) == (0, None)
        assert np.prod(shape[3:]) <= 1024, "too many threads in a block"
        self.enqueue(stream, self.kernels[name](int(np.prod(shape)), arguments))


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
