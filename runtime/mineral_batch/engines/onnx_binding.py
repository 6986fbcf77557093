"""An ONNX Runtime session bound to fixed buffers on a GPU, and the stream that it computes on."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.core import CoreContext
from mineral_batch.cuda.pinned import pinned_array
from mineral_batch.cuda.staging import StagedBatch
from mineral_batch.engines.onnx_session import nodes_elsewhere

if TYPE_CHECKING:
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

# https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#user_compute_stream
_NO_WAIT = ("disable_synchronize_execution_providers", "1")


class ComputeStream:
    """A stream that ONNX Runtime computes on, with page-locked memory for the answers of a batch.

    Args:
        gpu: the GPU.
        shape: (B, L) of the answers of the largest batch.

    Attributes:
        context: the GPU's.
        stream: the stream.
        handle: CUDA's address of it, as the provider option `user_compute_stream` takes it.
        answers: (B, L) float32, page-locked.

    Raises:
        DriverError: if cuda-core is not installed or the driver refuses.
    """

    def __init__(self, gpu: Gpu, shape: tuple[int, int]) -> None:
        with capture_lock.shared():
            self.context = CoreContext(gpu)
            self.answers: Probabilities = pinned_array((shape[0], shape[1] * 4), gpu).view(np.float32)
            with self.context.current():
                self.stream = self.context.stream()
        self.handle = self.stream.handle

    def close(self) -> None:
        """Destroy the stream, when no session uses it any more."""
        with capture_lock.shared():
            with self.context.current():
                self.stream.close()
            self.context.close()


class BoundSession:
    """A session with its buffers on the GPU: pixels (B, H, W, 3) uint8, probabilities (B, L) float32.

    Args:
        runtime: the module `onnxruntime`.
        session: made for batches of B.
        contract: the model's.
        device: index of the GPU.
        batch: B.
        stream: that the session computes on; None for a stream of its own.
    """

    def __init__(
        self,
        runtime: Any,
        session: Any,
        contract: ModelContract,
        device: int,
        batch: int,
        stream: ComputeStream | None = None,
    ) -> None:
        make = runtime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._stream = stream
        self._padded = np.zeros((batch, *contract.input.shape), np.uint8)
        self._pixels = make(self._padded.shape, np.uint8, "cuda", device)
        self._probabilities = make([batch, len(contract.labels)], np.float32, "cuda", device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._pixels)
        self._binding.bind_ortvalue_output(session.get_outputs()[0].name, self._probabilities)
        self._no_wait = runtime.RunOptions()
        self._no_wait.add_run_config_entry(*_NO_WAIT)

    def prepare(self) -> None:
        """Run once on whatever lies in the buffers: that allocates all that is needed and captures the graph."""
        self._session.run_with_iobinding(self._binding)

    def elsewhere(self) -> str:
        """Name the nodes that another provider than the first computes, as far as that is known."""
        return nodes_elsewhere(self._session)

    def run(self, images: Pixels | StagedBatch, start: int) -> Probabilities:
        """Probabilities (up to B, L) of the images (N, H, W, 3) from index `start` on, valid until the next call."""
        count = min(len(images) - start, len(self._padded))
        if isinstance(images, StagedBatch):
            assert self._stream is not None
            return self._run_staged(images, start, count, self._stream)
        self._pixels.update_inplace(self._whole(images[start : start + count]))
        self._session.run_with_iobinding(self._binding)
        probabilities: Probabilities = self._probabilities.numpy()[:count]
        return probabilities

    def _run_staged(self, images: StagedBatch, start: int, count: int, compute: ComputeStream) -> Probabilities:
        """Copy in, compute and copy out in the stream's order, and wait once."""
        context, stream, answers = compute.context, compute.stream, compute.answers[:count]
        with context.current():
            try:
                images.enqueue_copy(self._pixels.data_ptr(), start, count, stream)
                self._session.run_with_iobinding(self._binding, self._no_wait)
                context.copy(answers.ctypes.data, self._probabilities.data_ptr(), answers.nbytes, stream)
            except BaseException:
                with suppress(Exception):  # the first error is the one to report
                    stream.synchronize()  # what was enqueued must not read the buffer when another batch is in it
                raise
            stream.synchronize()
        return answers

    def _whole(self, pixels: Pixels) -> Pixels:
        """A full batch as it is, so that it is copied once, from page-locked memory; a smaller one padded."""
        if len(pixels) == len(self._padded):
            return pixels
        self._padded[: len(pixels)] = pixels
        return self._padded
