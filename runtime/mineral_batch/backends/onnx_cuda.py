"""ONNX Runtime on an NVIDIA GPU: fixed buffers on the device, one CUDA graph, batches that shrink when memory is short.

A session is made for one batch size, with one input and one output buffer on the GPU that every batch goes through.
So nothing is allocated while a run goes on, and the whole model is one CUDA graph: a last, smaller batch is padded.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from mineral_batch._onnx_file import read_contract
from mineral_batch.backends.cuda_driver import DriverError, Gpu, gate, page_locked, require_gpu
from mineral_batch.backends.onnx_runtime import check_graph, first_line, make_session, onnxruntime_with
from mineral_batch.errors import BackendError, MineralError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from mineral_batch.backends import Settings
    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities

CUDA = "CUDAExecutionProvider"
BATCH_SIZE = 64
_LOG_FATAL = 4
# The name that mineral-export gives to the batch dimension; fixed here, so that shapes are constants of the graph.
_BATCH_DIMENSION = "N"
_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "alloc_failed",
    "outofmemory",
    "out_of_memory",
)
_GRAPH_OPTIONS = ("enable_cuda_graph", "trt_cuda_graph_enable")
_NO_CUDA_GRAPH = "cannot use the graph capture feature"

_log = logging.getLogger("mineral_batch")

T = TypeVar("T")
Provider = tuple[str, dict[str, str]]


class OnnxGpuBackend:
    """One GPU session at a time, for a fixed batch; see `Backend`.

    When the GPU runs out of memory the session is made anew for half the batch, which also gives back what the old
    one held, and the same pictures are tried again; this is logged once for each halving.

    Args:
        session_for: makes a session for a batch size.
        runtime: the module `onnxruntime`.
        contract: the model's.
        name: as in `BACKENDS`.
        device: the GPU.
        batch_size: to begin with.
        precision: in words, for people and for the fingerprint of a run.
        engine: what computes beside ONNX Runtime, with its version.

    Raises:
        BackendError: if not even a batch of one fits.
        ContractError: if the graph is not the contract's.
    """

    workers = 1

    def __init__(
        self,
        session_for: Callable[[int], Any],
        runtime: Any,
        contract: ModelContract,
        *,
        name: str,
        device: Gpu,
        batch_size: int,
        precision: str,
        engine: str = "",
    ) -> None:
        self.name = name
        self.device = f"GPU {device.index} ({device.name}), {precision}"
        self.version = f"ONNX Runtime {runtime.__version__}{engine}, {precision}"
        self.contract = contract
        self.batch_size = batch_size
        self._index = device.index
        self._runtime = runtime
        self._session_for = session_for
        self._bound: _Bound | None = None
        # ONNX Runtime keeps a captured CUDA graph with the thread that captured it: all runs come from this one.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gpu")
        try:
            self._thread.submit(self._with_less_memory, self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    def buffer(self, pictures: int) -> Pixels:
        """Page-locked memory, from which the GPU reads at the full rate of its bus; ordinary if there is none."""
        shape = (pictures, *self.contract.input.shape)
        try:
            return page_locked(shape, self._index)
        except DriverError:
            return np.zeros(shape, np.uint8)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities, any N.

        Raises:
            BackendError: with ONNX Runtime's own words, if the run fails, or if not even one picture fits.
        """
        return self._thread.submit(self._infer, pixels).result()

    def _infer(self, pixels: Pixels) -> Probabilities:
        answers = np.empty((len(pixels), len(self.contract.labels)), np.float32)
        done = 0
        while done < len(pixels):
            given = self._with_less_memory(partial(self._run, pixels[done:]))
            answers[done : done + len(given)] = given
            done += len(given)
        return answers

    def _run(self, pixels: Pixels) -> Probabilities:
        """Answers for as many of the first pictures as fit into a batch."""
        bound = self._open()
        with gate.shared():
            return bound.run(pixels[: self.batch_size])

    def close(self) -> None:
        """Drop the session and its buffers, and with them the GPU's memory."""
        self._thread.submit(self._forget).result()
        self._thread.shutdown()

    def _forget(self) -> None:
        self._bound = None

    def _open(self) -> _Bound:
        """The session for the present batch size, its CUDA graph captured: see `gate`."""
        if self._bound is None:
            with gate.alone():
                session = self._session_for(self.batch_size)
                check_graph(session, self.contract)
                bound = _Bound(self._runtime, session, self.contract, self._index, self.batch_size)
                bound.prepare()
            self._bound = bound
        return self._bound

    def _with_less_memory(self, work: Callable[[], T]) -> T:
        """Do it, with half the batch as often as the GPU's memory asks for that."""
        while True:
            try:
                return work()
            except MineralError as error:
                self._require_halving(error, error)
            # ONNX Runtime's exceptions have no common base class.
            except Exception as error:
                told = BackendError(f"{self.name} failed on a batch of {self.batch_size}: {first_line(error)}")
                self._require_halving(error, told)
            # Outside the handlers, whose traceback would keep the old session and its memory alive.
            self._bound = None
            self.batch_size //= 2
            _log.warning("GPU %d is out of memory: going on with batches of %d", self._index, self.batch_size)

    def _require_halving(self, error: Exception, told: MineralError) -> None:
        """Raise what the user is told, unless half the batch may help."""
        if not _is_out_of_memory(error):
            raise told from error
        if self.batch_size == 1:
            raise BackendError(
                f"GPU {self._index} has too little free memory for one picture: stop other programs that use it "
                f"(nvidia-smi lists them) or choose another with --devices"
            ) from error


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

    def run(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) with N up to B -> (N, L) in ordinary memory."""
        self._pixels.update_inplace(self._whole(pixels))
        self._session.run_with_iobinding(self._binding)
        probabilities: Probabilities = self._probabilities.numpy()[: len(pixels)]
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
        lambda batch: fixed_session(runtime, path, batch, [(CUDA, cuda_options(gpu.index, is_exact=is_exact))]),
        runtime,
        contract,
        name="onnx-cuda",
        device=gpu,
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


def fixed_session(runtime: Any, path: Path, batch: int, providers: Sequence[Provider]) -> Any:
    """A session for this batch size alone, as one CUDA graph if every node of the model can run on the GPU.

    Raises:
        BackendError: if the model is refused, another provider would run it, or its batch size is fixed otherwise.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = _LOG_FATAL
    options.use_deterministic_compute = True
    options.add_free_dimension_override_by_name(_BATCH_DIMENSION, batch)
    try:
        session = make_session(runtime, path, options, providers)
    except BackendError as error:
        if _NO_CUDA_GRAPH not in str(error):
            raise
        session = make_session(runtime, path, options, [without_graphs(provider) for provider in providers])
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


def load_cuda_libraries(runtime: Any) -> None:
    """Find CUDA and cuDNN in the packages of torch or nvidia-*, where the system has none (ONNX Runtime 1.21 on).

    It prints what it does not find, which is of no use before it is known whether the session opens.
    """
    if hasattr(runtime, "preload_dlls"):
        with redirect_stdout(StringIO()):
            runtime.preload_dlls()


def _is_out_of_memory(error: BaseException | None) -> bool:
    """By ONNX Runtime's, CUDA's and cuBLAS's words, here or in what it came from: there is no type to go by."""
    while error is not None:
        if any(words in str(error).lower() for words in _OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False
