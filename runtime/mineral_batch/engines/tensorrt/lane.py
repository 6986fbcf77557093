"""One lane of a TensorRT engine: a stream, its buffers, an execution context and the CUDA graph of a batch."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from mineral_batch.cuda.interface import Context, Graph, Memory, PinnedMemory, Stream
    from mineral_batch.engines.tensorrt.library import Messages
    from mineral_batch.types import Pixels, Probabilities

_log = logging.getLogger("mineral_batch")


class Lane:
    """A stream with its buffers on the GPU: pixels (B, H, W, 3) uint8, probabilities (B, L) float32.

    Only the stream writes and reads them, and `run` waits for it: when a batch comes, the one before it is done.

    Args:
        cuda: the GPU's context, current here and in everything below.
    """

    def __init__(self, cuda: Context) -> None:
        self._cuda = cuda
        self._stream: Stream | None = cuda.stream()
        self._memory: list[Memory] = []
        self._pinned: PinnedMemory | None = None
        self._context: Any = None
        self._graph: Graph | None = None

    def open(self, context: Any, names: tuple[str, str], shape: tuple[int, ...], labels: int) -> None:
        """Allocate what a batch needs and tell the execution context where it is.

        Args:
            context: TensorRT's execution context.
            names: of its input and its output.
            shape: (B, H, W, 3) of the input.
            labels: L; the output is (B, L) float32.
        """
        self._context = context
        for size in (prod(shape), shape[0] * labels * 4):
            self._memory.append(self._cuda.allocate(size))
        self._pixels, self._answers = self._memory
        self._pinned = self._cuda.pinned(shape[0] * labels * 4)
        self._host: Probabilities = self._pinned.array.view(np.float32).reshape(shape[0], labels)
        _bind(context, names, shape, (self._pixels.address, self._answers.address))

    @property
    def stream(self) -> Stream:
        """The lane's stream; it is open."""
        assert self._stream is not None
        return self._stream

    @property
    def has_graph(self) -> bool:
        """Whether a batch is one launch."""
        return self._graph is not None

    def prepare(self, messages: Messages) -> None:
        """Run once on zeros, which allocates all that is ever needed, then record the graph."""
        self._work()
        self.stream.synchronize()
        failures: tuple[type[Exception], ...] = (BackendError, *self._cuda.errors)
        try:
            if not getattr(self._context, "is_stream_capturable", lambda _: True)(self.stream.handle):
                raise BackendError("this engine allocates while it runs")
            self._graph = self._cuda.capture(self.stream, self._work)
        except failures as error:
            # As text: whoever kept the log record would keep the stream, through the error's traceback.
            reason = messages.last() or str(error)
            _log.warning("TensorRT's work cannot be one CUDA graph (%s): computing without", reason)

    def run(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3), N up to B -> (N, L), valid until the next call; the rest of the batch is what lay there."""
        self._cuda.to_gpu(self._pixels, pixels, self.stream)
        try:
            if self._graph:
                self._graph.launch()
            else:
                self._work()
        finally:
            # Also after a failure: the copy may still be reading the caller's images.
            self.stream.synchronize()
        return self._host[: len(pixels)]

    def _work(self) -> None:
        if not self._context.execute_async_v3(self.stream.handle):
            raise BackendError("TensorRT could not start the engine: choose a smaller --batch-size, or build it again")
        self._cuda.from_gpu(self._host, self._answers, self.stream)

    def close(self) -> None:
        """Release everything when nothing runs on the stream any more: first the graph, which uses the rest."""
        with ExitStack() as steps:  # from the last one to the first, and all of them, whatever fails
            steps.callback(self._close_stream)
            for memory in self._memory:
                steps.callback(memory.close)
            if self._pinned:
                steps.callback(self._pinned.close)
            steps.callback(self._drop_context)
            if self._graph:
                steps.callback(self._graph.close)
            self.stream.synchronize()

    def _drop_context(self) -> None:
        self._graph = self._context = None

    def _close_stream(self) -> None:
        self._memory.clear()
        stream, self._stream = self.stream, None
        stream.close()


def _bind(context: Any, names: tuple[str, str], shape: tuple[int, ...], addresses: tuple[int, int]) -> None:
    """Set the input's shape and both addresses."""
    is_set = context.set_input_shape(names[0], shape)
    is_set = is_set and all(context.set_tensor_address(*pair) for pair in zip(names, addresses, strict=True))
    if not is_set:
        raise BackendError(f"the engine does not take a batch {shape}: build it again for that --batch")
