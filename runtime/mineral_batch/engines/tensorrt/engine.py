"""TensorRT's own runtime: engines from `mineral-export trt`, or an ONNX file that becomes one on first use.

Two lanes, each with a stream, buffers on the GPU and a context of its own, so that one lane copies while the other
computes. Everything is allocated when the engine is opened; a batch is one copy in, one CUDA graph and one wait:

    lane 0   copy in | compute, copy out |          copy in | compute, ...
    lane 1             copy in | wait    | compute, copy out |  copy in ...

Every batch has the same size, a smaller one is padded, so a picture's answer does not depend on how full its batch is.

This module has not run on a GPU yet: its tests drive it with recorded stand-ins of TensorRT and CUDA.
"""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from math import prod
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda.device import DriverError, Graph, cuda_version, gate, host_buffer, page_locked, require_gpu
from mineral_batch.cuda.errors import let_go
from mineral_batch.cuda.pycuda import open_cuda
from mineral_batch.engines import graph
from mineral_batch.engines.cache import caches, make_cache
from mineral_batch.engines.onnx_cpu import open_cpu
from mineral_batch.engines.tensorrt.build import Network, Options
from mineral_batch.engines.tensorrt.kernels import Contexts, kernels_path
from mineral_batch.engines.tensorrt.library import load_library
from mineral_batch.engines.tensorrt.plan import (
    SUFFIXES,
    EngineRecord,
    Profile,
    read_engine,
    read_record,
    rebuild_command,
    sidecar_path,
    write_engine,
)
from mineral_batch.errors import BackendError, MineralError
from mineral_batch.model.onnx_file import graph_digest, read_contract

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from mineral_batch.cuda.device import Gpu
    from mineral_batch.engines.base import Settings
    from mineral_batch.engines.tensorrt.build import Built
    from mineral_batch.engines.tensorrt.library import Library, Messages
    from mineral_batch.types import Pixels, Probabilities

BATCH_SIZE = 64
LANES = 2
# Pictures of noise that a new engine is tried on, and a difference of a probability that no precision explains.
_NOISE = 4
_WRONG = 0.3
_log = logging.getLogger("mineral_batch")


class TensorRtBackend:
    """An engine on one GPU; see `Backend`.

    Args:
        library: the TensorRT that built the engine.
        gpu: to run on.
        record: of the engine.
        plan: the engine.
        batch_size: of every call; None for the one that the engine is best at.

    Raises:
        BackendError: if TensorRT or CUDA refuses, or the engine does not take such a batch.
        ContractError: if the engine is not what its contract says.
    """

    name = "tensorrt"
    workers = LANES

    def __init__(self, library: Library, gpu: Gpu, record: EngineRecord, plan: bytes, batch_size: int | None) -> None:
        self.contract = record.contract
        self.batch_size = _checked_batch(batch_size or record.profile.optimum, record)
        self.version = (
            f"{library.name} {library.version}, {record.precision}, engine {record.engine_sha256[:12]}, {gpu.kind}, "
            f"batches of {self.batch_size}"
        )
        self._gpu = gpu
        self._library = library
        self._cuda: Any = open_cuda(gpu)
        cuda = self._cuda.name
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: Any = None
        self._lanes: list[_Lane] = []
        self._idle: SimpleQueue[_Lane | None] = SimpleQueue()  # None once it is closed
        try:
            with gate.shared(), self._cuda.current():
                self._open(record, plan)
        except BaseException as error:
            let_go(error)  # a context that outlives the GPU's own would be destroyed in none
            self._give_back()
            if isinstance(error, DriverError):
                raise BackendError(f"tensorrt does not open on GPU {gpu.index} ({gpu.name}): {error}") from error
            raise
        graphs = "" if all(lane.has_graph for lane in self._lanes) else ", without CUDA graph"
        self.device = f"GPU {gpu.index} ({gpu.name}), {record.precision}{graphs}, CUDA by {cuda}"

    def _open(self, record: EngineRecord, plan: bytes) -> None:
        trt, messages = self._library.module, self._library.messages()
        try:
            self._runtime = trt.Runtime(messages.logger)
        except TypeError:  # what its bindings make of a null pointer
            raise BackendError(
                f"{self._library.name} {self._library.version} does not start: {messages.last()}; see whether the "
                f"NVIDIA driver is new enough for it"
            ) from None
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such a plan brings a runtime of its own
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BackendError(
                f"{self._library.name} {self._library.version} does not load the engine: {messages.last()}; "
                f"build it again: {record.rebuild}"
            )
        names = _tensors(trt, self._engine)
        _check(self._engine, names, self.contract)
        self._contexts = Contexts(trt, self._engine, kernels_path(record, self._gpu))
        for _ in range(LANES):
            lane = _Lane(self._cuda)
            self._lanes.append(lane)  # closed with the others, whatever of it there is
            shape = (self.batch_size, *self.contract.input.shape)
            lane.open(self._contexts.make(), names, shape, len(self.contract.labels), self._gpu.index)
            lane.prepare(messages)
            self._idle.put(lane)
        self._contexts.keep()

    def buffer(self, pictures: int) -> Pixels:
        """Page-locked memory, which the GPU reads while it computes; ordinary if there is none."""
        return host_buffer((pictures, *self.contract.input.shape), self._gpu.index)

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities, any N; from up to `workers` threads at once.

        Raises:
            BackendError: if TensorRT or CUDA fails; the pictures of other threads are not touched.
        """
        if pixels.shape[1:] != self.contract.input.shape or pixels.dtype != np.uint8:
            raise BackendError(
                f"tensorrt got {pixels.dtype} {pixels.shape}; it takes uint8 (N, *{self.contract.input.shape})"
            )
        answers = np.empty((len(pixels), len(self.contract.labels)), np.float32)
        lane = self._idle.get()
        if lane is None:
            self._idle.put(None)
            raise BackendError("tensorrt: the engine is closed")
        try:
            with self._cuda.current():
                for start in range(0, len(pixels), self.batch_size):
                    part = np.ascontiguousarray(pixels[start : start + self.batch_size])
                    answers[start : start + len(part)] = lane.run(part)
        except DriverError as error:
            raise BackendError(f"tensorrt failed on a batch of {len(pixels)}: {error}") from error
        finally:
            self._idle.put(lane)
        return answers

    def close(self) -> None:
        """Give back the graphs, buffers and contexts, then the engine, then the GPU's context; twice does no harm.

        Waits for those who are inside `infer`.
        """
        if self._cuda is None:
            return
        for _ in self._lanes:
            self._idle.get()
        self._idle.put(None)
        self._give_back()

    def _give_back(self) -> None:
        cuda, self._cuda = self._cuda, None
        with _told(), gate.shared(), cuda.current():
            while self._lanes:
                with _told():
                    self._lanes.pop().close()
            self._contexts = self._engine = self._runtime = None
        with _told():
            cuda.release()


class _Lane:
    """A stream with its buffers on the GPU: pixels (B, H, W, 3) uint8, probabilities (B, L) float32.

    The last two are written and read by the stream alone, and `run` waits for it: a batch that is in flight when the
    next one comes does not exist.
    """

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._stream = cuda.stream()
        self._memory: list[Any] = []
        self._context: Any = None
        self._graph: Graph | None = None

    def open(self, context: Any, names: tuple[str, str], shape: tuple[int, ...], labels: int, device: int) -> None:
        """Allocate what a batch needs: (B, H, W, 3) uint8 in, (B, L) float32 out; the context is told where it is."""
        self._context = context
        for size in (prod(shape), shape[0] * labels * 4):
            self._memory.append(self._cuda.allocate(size))
        self._pixels, self._answers = self._memory
        # Uint8 that is read as float32: the driver hands out bytes.
        self._host = page_locked((shape[0], labels * 4), device).view(np.float32)  # (B, L)
        _bind(context, names, shape, (int(self._pixels), int(self._answers)))

    @property
    def has_graph(self) -> bool:
        """Whether a batch is one launch."""
        return self._graph is not None

    def prepare(self, messages: Messages) -> None:
        """Run once on zeros, which allocates all that is ever needed, then record the graph."""
        self._work()
        self._stream.synchronize()
        try:
            if not getattr(self._context, "is_stream_capturable", lambda _: True)(self._stream.handle):
                raise BackendError("this engine allocates while it runs")
            self._graph = Graph(self._stream, self._work)
        except (*self._cuda.errors, BackendError) as error:
            # As text: whoever keeps the record would keep the stream, through the error's traceback.
            reason = messages.last() or str(error)
            _log.warning("TensorRT's work cannot be one CUDA graph (%s): going on without", reason)

    def run(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3), N up to B -> (N, L), valid until the next call; the rest of the batch is what lay there."""
        self._cuda.to_gpu(self._pixels, pixels, self._stream)
        try:
            if self._graph:
                self._graph.launch()
            else:
                self._work()
        finally:
            # Also after a failure: the copy in may still be reading the caller's pictures.
            self._stream.synchronize()
        answers: Probabilities = self._host[: len(pixels)]
        return answers

    def _work(self) -> None:
        if not self._context.execute_async_v3(self._stream.handle):
            raise BackendError("TensorRT could not start the engine: see a smaller --batch-size, or build it again")
        self._cuda.from_gpu(self._host, self._answers, self._stream)

    def close(self) -> None:
        """Only when nothing runs on the stream any more: first the graph, which holds the context's addresses."""
        with ExitStack() as steps:  # in the order from the last one, and all of them, whatever fails
            steps.callback(self._drop_stream)
            for memory in self._memory:
                steps.callback(memory.free)
            steps.callback(self._drop_context)
            if self._graph:
                steps.callback(self._graph.close)
            self._stream.synchronize()

    def _drop_context(self) -> None:
        self._graph = self._context = None

    def _drop_stream(self) -> None:
        self._memory.clear()
        self._cuda.close_stream(self._stream)
        # Destroyed now: once the GPU's context is let go of, pycuda cannot.
        self._stream = None


@contextmanager
def _told() -> Iterator[None]:
    """An error is logged: a GPU that failed fails again when it is closed, and must not hide the first error."""
    try:
        yield
    except Exception as error:  # the driver's, pycuda's or TensorRT's
        _log.warning("closing the engine: %s", error)


def open_tensorrt(path: Path, settings: Settings) -> TensorRtBackend:
    """Open an engine with its description, or an ONNX file, from which one is built once for this GPU and batch.

    Raises:
        BackendError: if there is no GPU, TensorRT or pycuda, or the engine is stale or was built for another machine.
        ContractError: if the model or its description is missing or damaged.
    """
    is_engine = path.suffix in SUFFIXES
    contract = None if is_engine else read_contract(path)
    gpu = require_gpu("tensorrt", settings.device)
    if contract is None:
        library = load_library(read_record(path).runtime)
        record, plan = read_engine(path, library, gpu)
    else:
        library = load_library()
        record, plan = _from_cache(path, settings, library, gpu)
        # What the file says now: thresholds may have changed since the engine was built.
        record = replace(record, contract=contract)
    if settings.precision not in ("auto", record.precision):
        raise BackendError(
            f"{path.name} computes in {record.precision}: its types are part of the graph; for {settings.precision} "
            f"use another file (mineral-export fp16 makes one in float16)"
        )
    return TensorRtBackend(library, gpu, record, plan, settings.batch_size)


def _from_cache(source: Path, settings: Settings, library: Library, gpu: Gpu) -> tuple[EngineRecord, bytes]:
    """The engine of exactly this graph, software, GPU, batch and precision: read, or built and kept."""
    batch = settings.batch_size or BATCH_SIZE
    options = Options(Profile(batch, batch, batch), tf32=settings.precision != "float32")
    engine = cache_path(source, library, gpu, options)
    if engine.is_file() and sidecar_path(engine).is_file():
        try:
            return read_engine(engine, library, gpu)
        except MineralError as error:
            _log.warning("%s: building it anew", error)
    make_cache(engine.parent)  # before minutes of work
    _log.warning("building a TensorRT engine of %s for %s: minutes, and only once", source.name, gpu.name)
    cuda = open_cuda(gpu)
    try:
        with cuda.current():
            built = Network(library, source).build(options)
    finally:
        cuda.release()
    record = describe(built, source, engine, library, options, gpu)
    _require_answers(TensorRtBackend(library, gpu, record, built.plan, batch), source)
    write_engine(engine, built.plan, record)
    return record, built.plan


def _require_answers(backend: TensorRtBackend, source: Path) -> None:
    """A new engine, closed at the end, must answer as ONNX Runtime does on the processor, where that is installed.

    On pictures of noise, so that a wrong kernel is caught; `mineral-export verify` measures what the precision costs.
    In 8 bits engines differ on noise, which no calibration has seen: there only numbers are asked for.

    Raises:
        BackendError: if it does not.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (_NOISE, *backend.contract.input.shape), np.uint8)
    try:
        with closing(backend):
            found = backend.infer(pixels)
        with closing(open_cpu(source)) as reference:
            difference = float(np.abs(found - reference.infer(pixels)).max())
    except BackendError as error:
        _log.warning("the engine's answers are not compared with its model's: %s", error)
        return
    if not difference <= (1 if backend.contract.numerics.is_quantized else _WRONG):  # also where it is not a number
        raise BackendError(
            f"the engine that {backend.version} makes of {source.name} answers otherwise than ONNX Runtime does: a "
            f"probability differs by {difference:.2g}; use --backend onnx-cuda, and tell its authors"
        )


def cache_path(source: Path, library: Library, gpu: Gpu, options: Options) -> Path:
    """Where the engine is kept: whatever it depends on is in the name of its folder.

    Args:
        source: the ONNX file; its graph counts, not its name nor its contract.
        library: that builds.
        gpu: that it is for.
        options: of the build.
    """
    facts = [graph_digest(source), library.name, library.version, gpu.name, gpu.compute_capability, cuda_version()]
    key = hashlib.sha256(json.dumps([*facts, *options.arguments(), options.tf32]).encode()).hexdigest()[:24]
    return caches() / "engines" / key / "model.plan"


def describe(
    built: Built, source: Path, engine: Path, library: Library, options: Options, gpu: Gpu | None
) -> EngineRecord:
    """What is written beside an engine.

    Args:
        built: the engine.
        source: the ONNX file that it was built from.
        engine: where it will lie.
        library: that built it.
        options: how.
        gpu: of this machine, None if it has none.
    """
    chips = options.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    precision = built.layers.precision
    return EngineRecord(
        contract=read_contract(source),
        source=source.name,
        onnx_sha256=graph_digest(source),
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        runtime=library.name,
        version=library.version,
        cuda=cuda_version() if gpu else "",
        gpu=gpu.name if gpu else "",
        compute_capabilities=chips,
        precision="TF32 allowed" if options.tf32 and precision == "float32" else precision,
        products=built.layers.products,
        layers=built.layers.all,
        layers_from=built.layers.of,
        profile=options.profile,
        inputs=built.inputs,
        outputs=built.outputs,
        rebuild=rebuild_command(engine, source.name, "--runtime", library.name, *options.arguments()),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )


def _checked_batch(batch: int, record: EngineRecord) -> int:
    profile = record.profile
    if not profile.smallest <= batch <= profile.largest:
        raise BackendError(
            f"the engine takes {profile.smallest} to {profile.largest} pictures at once, not {batch}: choose another "
            f"--batch-size or build it again: {record.rebuild}"
        )
    return batch


def _tensors(trt: Any, engine: Any) -> tuple[str, str]:
    """Names of the input and of the output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BackendError(f"the engine has inputs {inputs} and outputs {outputs}; one of each was expected")
    return inputs[0], outputs[0]


def _check(engine: Any, names: tuple[str, str], contract: Any) -> None:
    kinds = {"UINT8": "uint8", "FLOAT": "float32"}

    def described(name: str) -> tuple[str, Sequence[object]]:
        kind = engine.get_tensor_dtype(name).name
        return kinds.get(kind, kind), list(engine.get_tensor_shape(name))

    graph.check(contract, described(names[0]), described(names[1]), inputs=1)


def _bind(context: Any, names: tuple[str, str], shape: tuple[int, ...], addresses: tuple[int, int]) -> None:
    """Set the input's shape and both addresses."""
    is_set = context.set_input_shape(names[0], shape)
    is_set = is_set and all(context.set_tensor_address(*pair) for pair in zip(names, addresses, strict=True))
    if not is_set:
        raise BackendError(f"the engine does not take a batch {shape}: build it again for that --batch")
