"""TensorRT's own runtime: an engine on one GPU.

Two lanes, each with a stream, buffers on the GPU and an execution context of its own, so that one lane copies while the
other computes. Everything is allocated when the engine is opened; a batch is one copy in, one CUDA graph and one wait:

    lane 0   copy in | compute, copy out |          copy in | compute, ...
    lane 1             copy in | wait    | compute, copy out |  copy in ...

Every batch has the same size, a smaller one is padded, so an image's probabilities do not depend on how full its batch
is.

This module has not run on a GPU yet: its tests use fakes of TensorRT and CUDA.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.errors import clear_frames
from mineral_batch.cuda.opening import open_context
from mineral_batch.cuda.pinned import host_buffer, pin
from mineral_batch.engines.base import Device, Engine, EngineInfo, check_signature
from mineral_batch.engines.tensorrt.kernels import Contexts, kernels_path
from mineral_batch.engines.tensorrt.lane import Lane
from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mineral_batch.cuda.interface import Context
    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.tensorrt.library import Library
    from mineral_batch.engines.tensorrt.plan import EngineRecord
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

LANES = 2
_log = logging.getLogger("mineral_batch")


class TensorRtEngine(Engine):
    """An engine on one GPU; see `Engine`.

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
    device_kind = "gpu"

    def __init__(self, library: Library, gpu: Gpu, record: EngineRecord, plan: bytes, batch_size: int | None) -> None:
        batch = _checked_batch(batch_size or record.profile.optimum, record)
        self._gpu = gpu
        self._library = library
        self._cuda: Context = open_context(gpu)
        info = EngineInfo(
            software=f"{library.name} {library.version}",
            precision=record.precision,
            device=Device("gpu", gpu),
            batch_size=batch,
            plan=record.engine_sha256[:12],
            cuda_package=self._cuda.package,
        )
        super().__init__(record.contract, info, batch_size=batch, workers=LANES)
        self._runtime: Any = None
        self._engine: Any = None
        self._contexts: Any = None
        self._lanes: list[Lane] = []
        self._idle: SimpleQueue[Lane | None] = SimpleQueue()  # None once it is closed
        try:
            with capture_lock.shared(), self._cuda.current():
                self._open(record, plan)
        except BaseException as error:
            clear_frames(error)  # an execution context that outlives the GPU's own could not be destroyed
            self._release_all()
            if isinstance(error, self._cuda.errors):
                raise BackendError(f"tensorrt does not open on GPU {gpu.index} ({gpu.name}): {error}") from error
            raise
        self.info = replace(info, has_graph=all(lane.has_graph for lane in self._lanes))

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
        names = _tensor_names(trt, self._engine)
        _check(self._engine, names, self.contract)
        self._contexts = Contexts(trt, self._engine, kernels_path(record, self._gpu))
        for _ in range(LANES):
            lane = Lane(self._cuda)
            self._lanes.append(lane)  # closed with the others, even if only half open
            shape = (self.batch_size, *self.contract.input.shape)
            lane.open(self._contexts.make(), names, shape, len(self.contract.labels))
            lane.prepare(messages)
            self._idle.put(lane)
        self._contexts.keep()

    def buffer(self, count: int) -> Pixels:
        """Page-locked memory, which the GPU reads while it computes; ordinary memory if there is none."""
        return host_buffer((count, *self.contract.input.shape), self._gpu)

    def pin(self, pixels: Pixels) -> None:
        """Page-lock a caller's buffer; without that its copies are slower."""
        pin(pixels, self._gpu)

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`; any number of images."""
        probabilities = np.empty((len(pixels), len(self.contract.labels)), np.float32)
        lane = self._idle.get()
        if lane is None:
            self._idle.put(None)
            raise BackendError(f"{self.name}: the engine is closed")
        try:
            with self._cuda.current():
                for start in range(0, len(pixels), self.batch_size):
                    part = np.ascontiguousarray(pixels[start : start + self.batch_size])
                    probabilities[start : start + len(part)] = lane.run(part)
        except self._cuda.errors as error:
            raise BackendError(f"{self.name} failed on a batch of {len(pixels)}: {error}") from error
        finally:
            self._idle.put(lane)
        return probabilities

    def release(self) -> None:
        """Release the graphs, buffers and execution contexts, then the engine; waits for running `infer` calls."""
        for _ in self._lanes:
            self._idle.get()
        self._idle.put(None)
        self._release_all()

    def _release_all(self) -> None:
        with _logged(), capture_lock.shared(), self._cuda.current():
            while self._lanes:
                with _logged():
                    self._lanes.pop().close()
            self._contexts = self._engine = self._runtime = None
        with _logged():
            self._cuda.close()


@contextmanager
def _logged() -> Iterator[None]:
    """Log an error: a GPU that failed fails again when it is closed, which must not hide the first error."""
    try:
        yield
    except Exception as error:  # the driver's, pycuda's or TensorRT's
        _log.warning("closing the engine: %s", error)


def _checked_batch(batch: int, record: EngineRecord) -> int:
    profile = record.profile
    if not profile.smallest <= batch <= profile.largest:
        raise BackendError(
            f"the engine takes {profile.smallest} to {profile.largest} images at once, not {batch}: choose another "
            f"--batch-size or build it again: {record.rebuild}"
        )
    return batch


def _tensor_names(trt: Any, engine: Any) -> tuple[str, str]:
    """Names of the input and of the output."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    outputs = [name for name in names if name not in inputs]
    if len(inputs) != 1 or len(outputs) != 1:
        raise BackendError(f"the engine has inputs {inputs} and outputs {outputs}; one of each was expected")
    return inputs[0], outputs[0]


def _check(engine: Any, names: tuple[str, str], contract: ModelContract) -> None:
    kinds = {"UINT8": "uint8", "FLOAT": "float32"}

    def described(name: str) -> tuple[str, Sequence[object]]:
        kind = engine.get_tensor_dtype(name).name
        return kinds.get(kind, kind), list(engine.get_tensor_shape(name))

    check_signature(contract, described(names[0]), described(names[1]))
