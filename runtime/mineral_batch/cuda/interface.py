"""What an engine needs of CUDA.

Two implementations: `mineral_batch.cuda.core` (NVIDIA's cuda-core) and `mineral_batch.cuda.pycuda`; `open_context` in
`mineral_batch.cuda.opening` chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from mineral_batch.types import Pixels


class Stream(Protocol):
    """A queue of work on the GPU that waits for no other, not even for the default stream.

    Attributes:
        handle: the address of CUDA's stream.
    """

    @property
    def handle(self) -> int: ...  # noqa: D102 - above

    def synchronize(self) -> None:
        """Wait for everything enqueued so far."""

    def close(self) -> None:
        """Destroy the stream."""


class Memory(Protocol):
    """Bytes on the GPU.

    Attributes:
        address: of the first one.
    """

    @property
    def address(self) -> int: ...  # noqa: D102 - above

    def close(self) -> None:
        """Free them. Nothing on a stream may still use them."""


class PinnedMemory(Protocol):
    """Page-locked host memory, which the GPU reads and writes at the full rate of its bus.

    Attributes:
        array: (size,) uint8, zeroed.
    """

    @property
    def array(self) -> Pixels: ...  # noqa: D102 - above

    def close(self) -> None:
        """Free it; the array must not be used afterwards."""


class Graph(Protocol):
    """Recorded work, started by one call instead of one for each kernel."""

    def launch(self) -> None:
        """Start it on the stream that it was recorded on."""

    def close(self) -> None:
        """Destroy the graph."""


class Context(Protocol):
    """One GPU's primary context, the one that ONNX Runtime, torch and nvImageCodec use too.

    Everything but `current` and `close` is called inside `with context.current():`.

    Attributes:
        package: `cuda-core` or `pycuda`.
        errors: what its calls raise; outside of `current` that is `DriverError`.
    """

    package: str
    errors: tuple[type[Exception], ...]

    def current(self) -> AbstractContextManager[None]:
        """Make it the thread's context in the block; afterwards the previous one is current again."""
        ...

    def stream(self) -> Stream:
        """Create a stream."""
        ...

    def allocate(self, size: int) -> Memory:
        """Allocate zeroed bytes on the GPU."""
        ...

    def pinned(self, size: int) -> PinnedMemory:
        """Allocate zeroed page-locked bytes."""
        ...

    def to_gpu(self, memory: Memory, array: NDArray[Any], stream: Stream) -> None:
        """Enqueue the copy of a contiguous array; beside computation only if it lies in pinned memory."""

    def from_gpu(self, array: NDArray[Any], memory: Memory, stream: Stream) -> None:
        """Enqueue a copy into an array in pinned memory."""

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` enqueues on the stream; it must not allocate."""
        ...

    def close(self) -> None:
        """Give back what the context itself holds."""
