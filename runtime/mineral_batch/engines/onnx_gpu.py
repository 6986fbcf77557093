"""One ONNX Runtime session on an NVIDIA GPU: fixed buffers, one CUDA graph, batches that shrink when memory is short.

A session is made for one batch size, with one input and one output buffer on the GPU that every batch goes through.
So nothing is allocated while a run goes on, and the whole model is one CUDA graph: a last, smaller batch is padded.

Two threads call. While one batch is computed, the next is copied to the GPU (`mineral_batch.cuda.staging`) and the
probabilities of the last are handed out. ONNX Runtime computes on a stream of ours, on which the copies before and
after it are enqueued too, so the GPU's thread waits once per batch and not three times.

What that should come to, computed and not measured: 64 images of 384 x 384 x 3 bytes are 28 MB, 0.6 ms at the 50 GB/s
of a PCI Express 5 bus, beside 10 ms in which a GPU of 790 TFLOP/s computes 121 GFLOP for each of them. One after the
other that would be 6% on top of the engine's own time. Side by side there remain the copy inside the GPU's memory,
0.02 ms at 3 TB/s, and the handover from thread to thread, of the order of 0.1 ms: 1 or 2%.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.errors import clear_frames, is_about_graphs, is_lost, is_out_of_memory, leak
from mineral_batch.cuda.pinned import host_buffer, pin
from mineral_batch.cuda.probe import DriverError
from mineral_batch.cuda.staging import StagingBuffers, is_well
from mineral_batch.engines.base import Engine
from mineral_batch.engines.onnx_binding import BoundSession, ComputeStream
from mineral_batch.engines.onnx_session import check_graph, first_line
from mineral_batch.errors import BackendError, MineralError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.cuda.staging import StagedBatch
    from mineral_batch.engines.base import EngineInfo
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

    #: Makes a session: (batch size, whether it is one CUDA graph, handle of the stream or 0 for its own) -> session.
    SessionMaker = Callable[[int, bool, int], Any]

_RESTART = "start the command again: this process cannot use the GPU any more"

_log = logging.getLogger("mineral_batch")

T = TypeVar("T")


class OnnxGpuEngine(Engine):
    """One GPU session at a time, for a fixed batch; see `Engine`.

    When the GPU runs out of memory, the session is made again for half the batch, which also frees what the old one
    held, and the same images are tried again; each halving is logged once. A model that cannot be one CUDA graph is
    computed without one; that is logged too, and `device` says so.

    Sessions are made, run and destroyed in one thread that holds `capture_lock`: freeing memory or a graph fails while
    another GPU captures its graph, and in a destructor such a failure ends the process.

    Args:
        make_session: see `SessionMaker`.
        runtime: the module `onnxruntime`.
        contract: the model's.
        name: as in the registry.
        info: what it computes with; the requested batch size is the one to begin with.
        check: called with the batch size when a session has run once; raises if it is not the requested engine.

    Raises:
        BackendError: if not even a batch of one fits.
        ContractError: if the graph is not the contract's.
    """

    device_kind = "gpu"

    def __init__(
        self,
        make_session: SessionMaker,
        runtime: Any,
        contract: ModelContract,
        *,
        name: str,
        info: EngineInfo,
        check: Callable[[int], object] = lambda batch: None,
    ) -> None:
        assert info.device.gpu is not None
        assert info.batch_size is not None
        self.name = name
        super().__init__(contract, replace(info, has_graph=True), batch_size=info.batch_size)
        self._gpu = info.device.gpu
        self._runtime = runtime
        self._make_session = make_session
        self._check = check
        self._bound: BoundSession | None = None
        self._stream: ComputeStream | None = None
        self._staging: StagingBuffers | None = None
        self._lost = ""
        # ONNX Runtime keeps a captured CUDA graph with the thread that captured it: all runs come from this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        try:
            self._stream = self._thread.submit(self._open_stream).result()
            self._thread.submit(self._with_less_memory, self._open).result()
            self._staging = self._open_staging() if self._stream else None
        except BaseException:
            self.close()
            raise
        self.workers = 2 if self._staging else 1

    def _open_stream(self) -> ComputeStream | None:
        """A stream for ONNX Runtime to compute on; None, with a warning, where cuda-core or the driver has none."""
        try:
            return ComputeStream(self._gpu, (self.batch_size, len(self.contract.labels)))
        except DriverError as error:
            self._warn_serial(error)
            return None

    def _open_staging(self) -> StagingBuffers | None:
        """Buffers for the next batch; None, with a warning, where there is no memory for them."""
        try:
            return StagingBuffers(self._gpu, (self.batch_size, *self.contract.input.shape))
        except DriverError as error:
            self._warn_serial(error)
            return None

    def _warn_serial(self, error: DriverError) -> None:
        _log.warning("GPU %d: %s: slower, each batch is copied and then computed", self._gpu.index, error)

    def buffer(self, count: int) -> Pixels:
        """Page-locked memory; ordinary memory if there is none."""
        return host_buffer((count, *self.contract.input.shape), self._gpu)

    def pin(self, pixels: Pixels) -> None:
        """Page-lock a caller's buffer; without that its copies are slower."""
        pin(pixels, self._gpu)

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`; any number of images."""
        if self._staging is None:
            return self._thread.submit(self._infer, pixels).result()
        probabilities = self._empty(len(pixels))
        for start in range(0, len(pixels), self._staging.batch_size):
            part = slice(start, start + self._staging.batch_size)
            probabilities[part] = self._infer_staged(self._staging, pixels[part])
        return probabilities

    def _infer_staged(self, staging: StagingBuffers, pixels: Pixels) -> Probabilities:
        """Up to a batch of probabilities; this thread copies to the GPU while the other one computes."""
        try:
            with staging.filled_with(pixels) as batch:
                return self._thread.submit(self._infer, batch).result()
        except DriverError as error:
            raise self._thread.submit(self._failure, error, len(pixels)).result() from error

    def _infer(self, images: Pixels | StagedBatch) -> Probabilities:
        """In the GPU's thread, as everything below."""
        if self._lost:
            raise BackendError(self._lost)
        probabilities = self._empty(len(images))
        done = 0
        while done < len(images):
            part = self._with_less_memory(partial(self._run, images, done))
            probabilities[done : done + len(part)] = part
            done += len(part)
        return probabilities

    def _empty(self, count: int) -> Probabilities:
        return np.empty((count, len(self.contract.labels)), np.float32)

    def _run(self, images: Pixels | StagedBatch, start: int) -> Probabilities:
        """Probabilities of as many images from index `start` on as fit into a batch."""
        bound = self._open()
        with capture_lock.shared():
            return bound.run(images, start)

    def release(self) -> None:
        """Drop the session and its buffers, and with them the GPU's memory."""
        self._thread.submit(self._drop_session).result()
        with ExitStack() as steps:  # from the last one to the first, and all of them, whatever fails
            if self._staging and not self._lost:
                steps.callback(self._staging.close)
            steps.callback(self._thread.shutdown)
            if self._stream and not self._lost:
                steps.callback(self._thread.submit(self._stream.close).result)

    def _drop_session(self) -> None:
        """Destroy the session; not on a GPU that has failed for other code in this process: see `leak`."""
        with capture_lock.shared():
            if self._staging and not self._lost and not self._staging.is_well():
                self._lost = f"{self._gpu.name} fails: start the command again"
                leak(self._bound)
            self._bound = None

    def _open(self) -> BoundSession:
        """The session for the present batch size, its CUDA graph captured."""
        if self._bound is None:
            with capture_lock.exclusive():
                self._bound = self._make()
        return self._bound

    def _make(self) -> BoundSession:
        """Make the session; without a CUDA graph, for good and with a warning, if the model cannot be one."""
        try:
            return self._attempt()
        except Exception as error:
            if not self.info.has_graph or not is_about_graphs(error):
                raise
            reason = first_line(error.__cause__ or error)
        self.info = replace(self.info, has_graph=False)
        bound = self._attempt()
        elsewhere = bound.elsewhere()
        _log.warning(
            "GPU %d: the model cannot be one CUDA graph (%s): computing without, slower%s",
            self._gpu.index,
            reason,
            f"; {elsewhere}" if elsewhere else "",
        )
        return bound

    def _attempt(self) -> BoundSession:
        """A session that has run once; one that fails is destroyed here, while nothing else captures a graph."""
        try:
            return self._prepare()
        except BaseException as error:
            if not is_lost(error, self._is_well):
                clear_frames(error)
            raise

    def _prepare(self) -> BoundSession:
        handle = self._stream.handle if self._stream else 0
        session = self._make_session(self.batch_size, bool(self.info.has_graph), handle)
        check_graph(session, self.contract)
        bound = BoundSession(self._runtime, session, self.contract, self._gpu.index, self.batch_size, self._stream)
        bound.prepare()
        self._check(self.batch_size)
        return bound

    def _with_less_memory(self, work: Callable[[], T]) -> T:
        """Do it, with half the batch as often as the GPU's memory asks for that."""
        while True:
            try:
                return work()
            except Exception as error:  # ONNX Runtime's exceptions have no common base class
                self._require_halving(error)
            # Outside the handler, whose error would keep the old session and its memory alive.
            self._drop_session()
            if self._lost:
                raise BackendError(self._lost)
            self.batch_size //= 2
            self.info = replace(self.info, batch_size=self.batch_size)
            _log.warning("GPU %d is out of memory: continuing with batches of %d", self._gpu.index, self.batch_size)

    def _require_halving(self, error: Exception) -> None:
        """Raise what to tell the user, unless half the batch may help."""
        failure = self._failure(error, self.batch_size)
        if not is_out_of_memory(error):
            raise failure
        if self.batch_size == 1:
            raise BackendError(
                f"GPU {self._gpu.index} has too little free memory for one image: stop other programs that use it "
                f"(nvidia-smi lists them) or choose another with --devices"
            ) from error

    def _failure(self, error: Exception, count: int) -> MineralError:
        """What to tell the user. What lies on a GPU that is lost stays there, and nothing uses it again."""
        if self._lost:
            return BackendError(self._lost)
        with capture_lock.shared():
            gpu_is_lost = is_lost(error, self._is_well)
        failure = self._as_message(error, count, "; " + _RESTART if gpu_is_lost else "")
        if gpu_is_lost:
            self._lost = str(failure)
            leak(error)
            leak(self._bound)
            self._bound = None
        else:
            clear_frames(error)
        return failure

    def _as_message(self, error: Exception, count: int, advice: str) -> MineralError:
        if isinstance(error, MineralError):
            return error
        failure = BackendError(f"{self.name} failed on a batch of {count}: {first_line(error)}{advice}")
        failure.__cause__ = error
        return failure

    def _is_well(self) -> bool:
        """Whether the GPU still works; holds `capture_lock`."""
        return self._staging.is_well() if self._staging else is_well(self._gpu)
