"""TensorRT's runtime, whose engines answer by a Python function on a GPU that only exists here; it builds none."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from .cuda import Cuda


class ILogger:
    ERROR, INTERNAL_ERROR = "error", "internal error"


def tensorrt() -> ModuleType:
    """The package, as far as running an engine needs it; `Engines.runtime` is its `Runtime`."""
    module = ModuleType("tensorrt")
    modes = SimpleNamespace(INPUT="in", OUTPUT="out")
    vars(module).update(__version__="10.13.3.9", ILogger=ILogger, TensorIOMode=modes)
    return module


@dataclass
class Engines:
    """What every plan is an engine of, and how it goes.

    Attributes:
        cuda: the GPU.
        library: `tensorrt()`, or a real one, whose values are used.
        shape: (height, width, 3) of a picture.
        labels: how many.
        compute: (N, height, width, 3) uint8 -> (N, labels) float32.
        told: by the inspector.
        plans: that it was to load.
        caches: of the contexts of TensorRT for RTX.
        logger: the first that TensorRT was given; it takes no other for the rest of the process.
    """

    cuda: Cuda
    library: Any
    shape: tuple[int, ...]
    labels: int
    compute: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    told: str = "{}"
    starts: bool = True
    loads: bool = True
    is_capturable: bool = True
    most_contexts: int = 1000
    plans: list[bytes] = field(default_factory=list)
    caches: list[RuntimeCache] = field(default_factory=list)
    logger: Any = None

    def runtime(self, logger: Any) -> SimpleNamespace:
        """TensorRT's `Runtime(logger)`."""
        self.logger = self.logger or logger
        if self.starts:
            return SimpleNamespace(deserialize_cuda_engine=self.load)
        self.logger.log(self.library.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    def load(self, plan: bytes) -> Engine | None:
        self.plans.append(plan)
        if self.loads:
            return Engine(self, self.cuda.stack[-1:])
        self.logger.log(self.library.ILogger.ERROR, "no\nluck")
        return None

    def run(self, pixels: int, answers: int, shape: tuple[int, ...]) -> None:
        """What one execution does with the memory at these addresses, which is as large as the batch."""
        memory = self.cuda.memory
        batch = memory[pixels].reshape(shape)
        memory[answers].view(np.float32).reshape(shape[0], self.labels)[:] = self.compute(batch)


@dataclass
class Engine:
    """One that was loaded without a context can be inspected, not run."""

    engines: Engines
    context: list[Any]
    num_io_tensors = 2

    def get_tensor_name(self, index: int) -> str:
        return ("pixels", "probabilities")[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.engines.library.TensorIOMode
        return modes.INPUT if name == "pixels" else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="UINT8" if name == "pixels" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *self.engines.shape) if name == "pixels" else (-1, self.engines.labels)

    def create_engine_inspector(self) -> SimpleNamespace:
        return SimpleNamespace(get_engine_information=lambda form: self.engines.told)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, config: RuntimeConfig | None = None) -> ExecutionContext | None:
        cuda = self.engines.cuda
        if config is None:
            cuda.say("context")
        else:
            cuda.say(f"context, {config.dynamic_shapes_kernel_specialization_strategy}")
            self.engines.caches.append(config.cache)
        assert self.context == cuda.stack[-1:], "the engine was loaded in another context"
        self.engines.most_contexts -= 1
        kernels = config.cache if config else RuntimeCache()
        return ExecutionContext(self.engines, kernels) if self.engines.most_contexts >= 0 else None


class RuntimeConfig:
    """Of TensorRT for RTX."""

    dynamic_shapes_kernel_specialization_strategy = "lazy"
    cache: RuntimeCache

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True


@dataclass
class RuntimeCache:
    """Of the kernels of each batch size that ran; it takes only what one of its kind wrote."""

    batches: set[int] = field(default_factory=set)

    def deserialize(self, content: bytes) -> bool:
        kind, *batches = content.split()
        if kind != b"kernels":
            return False
        self.batches.update(map(int, batches))
        return True

    def serialize(self) -> bytes:
        return b" ".join([b"kernels", *(b"%d" % batch for batch in sorted(self.batches))])


@dataclass
class ExecutionContext:
    engines: Engines
    kernels: RuntimeCache
    at: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "pixels" and shape[1:] == self.engines.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.at[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engines.is_capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.engines.cuda.say("execute")
        self.kernels.batches.add(self.shape[0])
        work = partial(self.engines.run, self.at["pixels"], self.at["probabilities"], self.shape)
        self.engines.cuda.enqueue(stream, work)
        return True
