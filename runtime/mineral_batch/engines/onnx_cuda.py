"""ONNX Runtime on an NVIDIA GPU: fixed buffers on the device, one CUDA graph, batches that shrink when memory is short.

A session is made for one batch size, with one input and one output buffer on the GPU that every batch goes through.
So nothing is allocated while a run goes on, and the whole model is one CUDA graph: a last, smaller batch is padded.

Two threads call: while one batch is computed the next is copied to the GPU (`uploads`), and the answers of the last are
given out. What that should come to, computed and not measured: 64 pictures of 384 x 384 x 3 bytes are 28 MB, 0.6 ms at
the 50 GB/s of a PCI Express 5 bus, beside 10 ms in which a GPU of 790 TFLOP/s computes 121 GFLOP for each of them. One
after the other that would be 6 % on top of the engine's own time. Side by side there remains the copy inside the GPU's
memory, 0.02 ms at 3 TB/s, and the handing over from thread to thread, of the order of 0.1 ms: 1 or 2 %.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mineral_batch.cuda.device import DriverError, Gpu, gate, host_buffer, require_gpu
from mineral_batch.cuda.errors import is_about_graphs, is_lost, is_out_of_memory, keep_for_ever, let_go
from mineral_batch.cuda.libraries import load_cuda_libraries
from mineral_batch.cuda.staging import Upload, Uploads, is_well
from mineral_batch.engines.onnx_cpu import (
    WHO_COMPUTES_WHAT,
    check_graph,
    first_line,
    make_session,
    nodes_elsewhere,
    onnxruntime_with,
)
from mineral_batch.errors import BackendError, MineralError
from mineral_batch.model.onnx_file import read_contract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mineral_batch.engines.base import Settings
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

CUDA = "CUDAExecutionProvider"
BATCH_SIZE = 64
_LOG_FATAL = 4
# The name that mineral-export gives to the batch dimension; fixed here, so that shapes are constants of the graph.
_BATCH_DIMENSION = "N"
_AGAIN = "start the command again: this process cannot use the GPU any more"
_GRAPH_OPTIONS = ("enable_cuda_graph", "trt_cuda_graph_enable")

_log = logging.getLogger("mineral_batch")

T = TypeVar("T")
Provider = tuple[str, dict[str, str]]


class OnnxGpuBackend:
    """One GPU session at a time, for a fixed batch; see `Backend`.

    When the GPU runs out of memory the session is made anew for half the batch, which also gives back what the old
    one held, and the same pictures are tried again; this is logged once for each halving. A model that cannot be one
    CUDA graph is computed without; this is logged, too, and `device` says so.

    Sessions are made, run and destroyed in one thread, inside `gate`: what gives back memory or a graph fails while
    another GPU captures its graph, and in a destructor that ends the process.

    Args:
        session_for: makes a session for a batch size, with or without a CUDA graph.
        runtime: the module `onnxruntime`.
        contract: the model's.
        name: as in `BACKENDS`.
        gpu: to run on.
        batch_size: to begin with, and what a run is known by.
        precision: in words, for people and for the fingerprint of a run.
        engine: what computes beside ONNX Runtime, with its version.
        prepared: called with the batch size when a session has run once; raises if it is not what was asked for.

    Raises:
        BackendError: if not even a batch of one fits.
        ContractError: if the graph is not the contract's.
    """

    def __init__(
        self,
        session_for: Callable[[int, bool], Any],
        runtime: Any,
        contract: ModelContract,
        *,
        name: str,
        gpu: Gpu,
        batch_size: int,
        precision: str,
        engine: str = "",
        prepared: Callable[[int], object] = lambda batch: None,
    ) -> None:
        self.name = name
        self.contract = contract
        self.batch_size = batch_size
        self._asked = batch_size
        self._gpu = gpu
        self._precision = precision
        self._software = f"ONNX Runtime {runtime.__version__}{engine}"
        self._runtime = runtime
        self._session_for = session_for
        self._prepared = prepared
        self._has_graph = True
        self._bound: _Bound | None = None
        self._uploads: Uploads | None = None
        self._lost = ""
        self._is_closed = False
        # ONNX Runtime keeps a captured CUDA graph with the thread that captured it: all runs come from this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        try:
            self._thread.submit(self._with_less_memory, self._open).result()
            self._uploads = self._open_uploads()
        except BaseException:
            self.close()
            raise
        self.workers = 2 if self._uploads else 1

    def _open_uploads(self) -> Uploads | None:
        """None where the driver does not give what they need."""
        try:
            return Uploads(self._gpu, (self.batch_size, *self.contract.input.shape))
        except DriverError as error:
            _log.warning(
                "GPU %d: %s: going on slower, with one batch copied and computed after the other",
                self._gpu.index,
                error,
            )
            return None

    @property
    def device(self) -> str:
        """The GPU, the precision, and whether the model is one CUDA graph."""
        graph = "" if self._has_graph else ", without CUDA graph"
        return f"GPU {self._gpu.index} ({self._gpu.name}), {self._precision}{graph}"

    @property
    def version(self) -> str:
        """Software, precision, kind of GPU and present batch size: kernels differ by all of them."""
        return self._described(self.batch_size)

    @property
    def identity(self) -> str:
        """The version with the batch size that was asked for: see `mineral_batch.engines.base.identity`."""
        return self._described(self._asked)

    def _described(self, batch: int) -> str:
        return f"{self._software}, {self._precision}, {self._gpu.kind}, batches of {batch}"

    def buffer(self, pictures: int) -> Pixels:
        """Page-locked memory; ordinary if there is none."""
        return host_buffer((pictures, *self.contract.input.shape), self._gpu.index)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities, any N; from up to `workers` threads at once.

        Raises:
            BackendError: with ONNX Runtime's own words, if the run fails, or if not even one picture fits.
        """
        if pixels.shape[1:] != self.contract.input.shape or pixels.dtype != np.uint8:
            raise BackendError(
                f"{self.name} got {pixels.dtype} {pixels.shape}; it takes uint8 (N, *{self.contract.input.shape})"
            )
        if self._uploads is None:
            return self._thread.submit(self._infer, pixels).result()
        answers = self._empty(len(pixels))
        for start in range(0, len(pixels), self._uploads.pictures):
            part = slice(start, start + self._uploads.pictures)
            answers[part] = self._infer_uploaded(self._uploads, pixels[part])
        return answers

    def _infer_uploaded(self, uploads: Uploads, pixels: Pixels) -> Probabilities:
        """Answers for as many pictures as `uploads` hold; the copy is this thread's, beside the other one's batch."""
        try:
            with uploads.of(pixels) as upload:
                return self._thread.submit(self._infer, upload).result()
        except DriverError as error:
            raise self._thread.submit(self._failed, error, len(pixels)).result() from error

    def _infer(self, pictures: Pixels | Upload) -> Probabilities:
        """In the GPU's thread, as everything below."""
        if self._lost:
            raise BackendError(self._lost)
        answers = self._empty(len(pictures))
        done = 0
        while done < len(pictures):
            given = self._with_less_memory(partial(self._run, pictures, done))
            answers[done : done + len(given)] = given
            done += len(given)
        return answers

    def _empty(self, pictures: int) -> Probabilities:
        return np.empty((pictures, len(self.contract.labels)), np.float32)

    def _run(self, pictures: Pixels | Upload, start: int) -> Probabilities:
        """Answers for as many pictures from number `start` on as fit into a batch."""
        bound = self._open()
        with gate.shared():
            return bound.run(pictures, start)

    def close(self) -> None:
        """Drop the session and its buffers, and with them the GPU's memory; twice does no harm."""
        if self._is_closed:
            return
        self._is_closed = True
        self._thread.submit(self._forget).result()
        self._thread.shutdown()
        if self._uploads and not self._lost:
            self._uploads.close()

    def _forget(self) -> None:
        """Destroy the session; not on a GPU that has failed for somebody else in this process: see `keep_for_ever`."""
        with gate.shared():
            if self._uploads and not self._lost and not self._uploads.is_well():
                self._lost = f"{self._gpu.name} fails: start the command again"
                keep_for_ever(self._bound)
            self._bound = None

    def _open(self) -> _Bound:
        """The session for the present batch size, its CUDA graph captured: see `gate`."""
        if self._bound is None:
            with gate.alone():
                self._bound = self._made()
        return self._bound

    def _made(self) -> _Bound:
        """Without a CUDA graph, for good and aloud, if the model cannot be one."""
        try:
            return self._attempt()
        except Exception as error:
            if not self._has_graph or not is_about_graphs(error):
                raise
            reason = first_line(error.__cause__ or error)
        self._has_graph = False
        bound = self._attempt()
        elsewhere = bound.elsewhere()
        _log.warning(
            "GPU %d: the model cannot be one CUDA graph (%s): going on without, slower%s",
            self._gpu.index,
            reason,
            f"; {elsewhere}" if elsewhere else "",
        )
        return bound

    def _attempt(self) -> _Bound:
        """A session that has run; one that fails is destroyed here, while nobody else captures a graph."""
        try:
            return self._prepare()
        except BaseException as error:
            if not is_lost(error, self._is_well):
                let_go(error)
            raise

    def _prepare(self) -> _Bound:
        session = self._session_for(self.batch_size, self._has_graph)
        check_graph(session, self.contract)
        bound = _Bound(self._runtime, session, self.contract, self._gpu.index, self.batch_size)
        bound.prepare()
        self._prepared(self.batch_size)
        return bound

    def _with_less_memory(self, work: Callable[[], T]) -> T:
        """Do it, with half the batch as often as the GPU's memory asks for that."""
        while True:
            try:
                return work()
            # ONNX Runtime's exceptions have no common base class.
            except Exception as error:
                self._require_halving(error)
            # Outside the handler, whose error would keep the old session and its memory alive.
            self._forget()
            if self._lost:
                raise BackendError(self._lost)
            self.batch_size //= 2
            _log.warning("GPU %d is out of memory: going on with batches of %d", self._gpu.index, self.batch_size)

    def _require_halving(self, error: Exception) -> None:
        """Raise what the user is told, unless half the batch may help."""
        told = self._failed(error, self.batch_size)
        if not is_out_of_memory(error):
            raise told
        if self.batch_size == 1:
            raise BackendError(
                f"GPU {self._gpu.index} has too little free memory for one picture: stop other programs that use it "
                f"(nvidia-smi lists them) or choose another with --devices"
            ) from error

    def _failed(self, error: Exception, pictures: int) -> MineralError:
        """What the user is told. What is on a GPU that is lost stays there, and nobody is let near it."""
        if self._lost:
            return BackendError(self._lost)
        with gate.shared():
            has_lost = is_lost(error, self._is_well)
        told = self._told(error, pictures, "; " + _AGAIN if has_lost else "")
        if has_lost:
            self._lose(error, told)
        else:
            let_go(error)
        return told

    def _lose(self, error: Exception, told: MineralError) -> None:
        self._lost = str(told)
        keep_for_ever(error)
        keep_for_ever(self._bound)
        self._bound = None

    def _told(self, error: Exception, pictures: int, advice: str) -> MineralError:
        if isinstance(error, MineralError):
            return error
        told = BackendError(f"{self.name} failed on a batch of {pictures}: {first_line(error)}{advice}")
        told.__cause__ = error
        return told

    def _is_well(self) -> bool:
        """Inside `gate`."""
        return self._uploads.is_well() if self._uploads else is_well(self._gpu)


class _Bound:
    """A session with its buffers on the GPU: pixels (B, H, W, 3) uint8, probabilities (B, L) float32."""

    def __init__(self, runtime: Any, session: Any, contract: ModelContract, device: int, batch: int) -> None:
        make = runtime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._padded = np.zeros((batch, *contract.input.shape), np.uint8)
        self._pixels = make(self._padded.shape, np.uint8, "cuda", device)
        self._probabilities = make([batch, len(contract.labels)], np.float32, "cuda", device)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(session.get_inputs()[0].name, self._pixels)
        self._binding.bind_ortvalue_output(session.get_outputs()[0].name, self._probabilities)

    def prepare(self) -> None:
        """Run once on whatever lies there: the first run allocates all that is needed and captures the graph."""
        self._session.run_with_iobinding(self._binding)

    def elsewhere(self) -> str:
        """Which of the model's nodes another provider than the first computes, as far as that is known."""
        return nodes_elsewhere(self._session)

    def run(self, pictures: Pixels | Upload, start: int) -> Probabilities:
        """(N, H, W, 3), those from number `start` on, up to B of them -> (up to B, L) in ordinary memory."""
        count = min(len(pictures) - start, len(self._padded))
        if isinstance(pictures, Upload):
            pictures.copy_to(self._pixels.data_ptr(), start, count)
        else:
            self._pixels.update_inplace(self._whole(pictures[start : start + count]))
        self._session.run_with_iobinding(self._binding)
        probabilities: Probabilities = self._probabilities.numpy()[:count]
        return probabilities

    def _whole(self, pixels: Pixels) -> Pixels:
        """A full batch as it is, so that it is copied once, from page-locked memory; a smaller one padded."""
        if len(pixels) == len(self._padded):
            return pixels
        self._padded[: len(pixels)] = pixels
        return self._padded


def open_cuda(path: Path, settings: Settings) -> OnnxGpuBackend:
    """Open a model on an NVIDIA GPU, or refuse: never on the CPU instead.

    Raises:
        BackendError: if there is no onnxruntime-gpu, no driver, or no such GPU.
        ContractError: if the file carries no contract, or another one than its graph.
    """
    contract = read_contract(path)
    if settings.precision in ("bfloat16", "float16"):
        raise BackendError(
            f"onnx-cuda computes in the precision of the model file: give it a file exported in half precision instead "
            f"of --precision {settings.precision}"
        )
    gpu = require_gpu("onnx-cuda", settings.device)
    runtime = onnxruntime_with(CUDA)
    load_cuda_libraries(runtime)
    is_exact = settings.precision == "float32"
    return OnnxGpuBackend(
        partial(fixed_session, runtime, path, [(CUDA, cuda_options(gpu.index, is_exact=is_exact))]),
        runtime,
        contract,
        name="onnx-cuda",
        gpu=gpu,
        batch_size=settings.batch_size or BATCH_SIZE,
        precision="float32" if is_exact else "TF32 allowed",
    )


def cuda_options(device: int, *, is_exact: bool) -> dict[str, str]:
    """Of ONNX Runtime's CUDA provider; the algorithms of convolutions by rule, so that two runs choose alike.

    https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html
    """
    return {
        "device_id": str(device),
        "use_tf32": "0" if is_exact else "1",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
    }


def fixed_session(runtime: Any, path: Path, providers: Sequence[Provider], batch: int, has_graph: bool) -> Any:
    """A session for this batch size alone.

    Args:
        runtime: the module `onnxruntime`.
        path: of the model.
        providers: with their options, those for a CUDA graph among them.
        batch: pictures per call.
        has_graph: whether it is to be one CUDA graph, which is refused if the first provider cannot run every node.

    Raises:
        BackendError: if the model is refused, another provider would run it, or its batch size is fixed otherwise.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.use_deterministic_compute = True
    options.add_free_dimension_override_by_name(_BATCH_DIMENSION, batch)
    options.add_session_config_entry(*WHO_COMPUTES_WHAT)
    given = providers if has_graph else [without_graphs(provider) for provider in providers]
    session = make_session(runtime, path, options, given)
    found = session.get_inputs()[0].shape[0]
    if found != batch:
        raise BackendError(
            f"the model's batch dimension is {found}, not the free '{_BATCH_DIMENSION}' of mineral-export onnx: "
            f"export it again"
        )
    return session


def without_graphs(provider: Provider) -> Provider:
    """The same provider, told not to capture CUDA graphs."""
    name, given = provider
    return name, {option: "0" if option in _GRAPH_OPTIONS else value for option, value in given.items()}
