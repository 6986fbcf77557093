"""The protocol of an inference engine, its options, what it says of itself, and the checks that engines share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from mineral_batch.errors import BackendError, ContractError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities

Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
#: The precision of an engine that may multiply float32 numbers in TF32, of 10 bits of mantissa.
TF32 = "TF32 allowed"


@dataclass(frozen=True)
class Tuning:
    """Switches of an engine that trade speed for something else, or whose gain depends on the model.

    Attributes:
        deterministic: forbid kernels whose result differs from run to run. ONNX Runtime's faster reductions are such.
        nhwc: have ONNX Runtime's CUDA provider lay out convolutions channels last.
    """

    deterministic: bool = True
    nhwc: bool = False

    def __str__(self) -> str:
        """What differs from the default, each with a comma before it; empty if nothing does."""
        return ("" if self.deterministic else ", not deterministic") + (", NHWC" if self.nhwc else "")


@dataclass(frozen=True)
class EngineOptions:
    """How to open an engine.

    Attributes:
        device: index of the GPU; None for the engine's own choice. An engine for the CPU refuses a number.
        batch_size: images per call; None for what suits the device.
        precision: to compute in. `auto` is the fastest that keeps the model's accuracy; an engine refuses what it
            cannot do.
        tuning: further switches; engines without them ignore them.
        familiarity: have `infer` give the familiarity of each image too; an engine refuses what it cannot do.
    """

    device: int | None = None
    batch_size: int | None = None
    precision: str = "auto"
    tuning: Tuning = field(default_factory=Tuning)
    familiarity: bool = False


@dataclass(frozen=True)
class Device:
    """What an engine runs on.

    Attributes:
        kind: `cpu` where images are decoded too, so that engine and decoders share the time.
        gpu: the GPU; None for the CPU.
    """

    kind: Literal["cpu", "gpu"]
    gpu: Gpu | None = None

    def __str__(self) -> str:
        return f"GPU {self.gpu.index} ({self.gpu.name})" if self.gpu else self.kind.upper()


CPU_DEVICE = Device("cpu")


@dataclass(frozen=True)
class EngineInfo:
    """What an open engine computes with.

    Attributes:
        software: packages and versions, such as `ONNX Runtime 1.31.1, TensorRT 10.14.1`.
        precision: of its matrix products: `float32`, `bfloat16`, `float16`, `int8`, `float8`, `mixed`, or `TF32`.
        device: where it runs.
        batch_size: the batch that its kernels are for; None where a probability does not depend on that.
        requested_batch_size: the batch that it was opened with, which may have been too large for the GPU's memory.
        has_graph: whether a batch is one CUDA graph; None for an engine that knows none.
        plan: the first digits of a TensorRT plan's SHA-256; empty without one.
        cuda_package: through which the engine itself calls CUDA; empty if it does not.
    """

    software: str
    precision: str
    device: Device = CPU_DEVICE
    batch_size: int | None = None
    requested_batch_size: int | None = None
    has_graph: bool | None = None
    plan: str = ""
    cuda_package: str = ""

    @property
    def where(self) -> str:
        """Device and precision in words, and what is unusual."""
        graph = ", without CUDA graph" if self.has_graph is False else ""
        package = f", CUDA by {self.cuda_package}" if self.cuda_package else ""
        return f"{self.device}, {self.precision}{graph}{package}"

    @property
    def version(self) -> str:
        """Everything beside the model that can change a probability."""
        gpu, plan = self.device.gpu, f"engine {self.plan}" if self.plan else ""
        parts = [self.software, self.precision, plan, gpu.kind if gpu else ""]
        parts += [f"batches of {self.batch_size}"] if self.batch_size is not None else []
        return ", ".join(filter(None, parts))

    @property
    def identity(self) -> str:
        """The version with the requested batch size, so that a run continues however much memory is free."""
        return replace(self, batch_size=self.requested_batch_size or self.batch_size).version


@runtime_checkable
class Backend(Protocol):
    """An open engine, or several behind one: see `Engine` and `DeviceGroup`.

    Attributes:
        name: as in `mineral_batch.engines.registry`.
        contract: what the model says about itself.
        batch_size: a good number of images to give at once on this device.
        workers: how many threads may call `infer` at the same time, and should, to keep the device busy.
    """

    name: str
    contract: ModelContract
    batch_size: int
    workers: int

    @property
    def info(self) -> EngineInfo:
        """What it computes with; of a group, the first device's."""
        ...

    @property
    def device(self) -> str:
        """What it runs on and in which precision, in words."""
        ...

    @property
    def version(self) -> str:
        """Everything beside the model that can change a probability, in words."""
        ...

    @property
    def identity(self) -> str:
        """What must be alike for a run to continue: see `EngineInfo.identity`."""
        ...

    def buffer(self, count: int) -> Pixels:
        """Room for a batch, (count, H, W, 3) uint8, in memory that the device reads fastest."""
        ...

    def pin(self, pixels: Pixels) -> None:
        """Prepare a buffer that the caller made for being read fast; it need not come from `buffer`."""
        ...

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities, which the next call may overwrite.

        Opened with `familiarity` it gives (N, L + 1): the familiarity of the image is the last column.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds. It is not used afterwards."""
        ...


class Engine(ABC):
    """A model open on one device; see `Backend`. A new engine subclasses this and implements `compute` and `close`.

    Args:
        contract: the model's.
        info: what the engine computes with.
        batch_size: see `Backend`.
        workers: see `Backend`.
    """

    name: str
    #: Values of --precision that the engine takes.
    precisions: ClassVar[tuple[str, ...]] = ("auto", "float32")
    device_kind: ClassVar[Literal["cpu", "gpu"]] = "cpu"
    #: Whether it can give the familiarity of images.
    gives_familiarity: ClassVar[bool] = False

    def __init__(
        self,
        contract: ModelContract,
        info: EngineInfo,
        *,
        batch_size: int = 1,
        workers: int = 1,
        familiarity: bool = False,
    ) -> None:
        self.contract = contract
        self.has_familiarity = familiarity
        self.batch_size = batch_size
        self.workers = workers
        self.info = info
        self._is_closed = False

    @classmethod
    def check_options(cls, options: EngineOptions, *, name: str = "") -> None:
        """Refuse options that the engine cannot follow.

        Raises:
            BackendError: for a GPU where the engine runs on the CPU, a precision that it does not compute in, or
                familiarity that it does not give.
        """
        name = name or cls.name
        if options.familiarity and not cls.gives_familiarity:
            raise BackendError(
                f"{name} does not give the familiarity of images: use --backend onnx-cpu, or leave it out of --columns"
            )
        if cls.device_kind == "cpu" and options.device is not None:
            raise BackendError(f"{name} runs on the CPU and has no device {options.device}: leave out --devices")
        if options.precision not in cls.precisions:
            possible = ", ".join(cls.precisions)
            raise BackendError(
                f"{name} does not compute in {options.precision}: choose --precision {possible}, or another --backend"
            )

    @property
    def device(self) -> str:
        """See `Backend`."""
        return self.info.where

    @property
    def version(self) -> str:
        """See `Backend`."""
        return self.info.version

    @property
    def identity(self) -> str:
        """See `Backend`."""
        return self.info.identity

    def buffer(self, count: int) -> Pixels:
        """Room for a batch, (count, H, W, 3) uint8; ordinary memory unless the engine knows better."""
        return np.zeros((count, *self.contract.input.shape), np.uint8)

    def pin(self, pixels: Pixels) -> None:  # noqa: B027 - for the CPU all memory is alike
        """Prepare a buffer that the caller made; a GPU engine page-locks it."""

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities; safe from up to `workers` threads at once.

        Raises:
            BackendError: if the engine is closed, the pixels have another shape or type, or the engine fails.
        """
        if self._is_closed:
            raise BackendError(f"{self.name}: the engine is closed")
        if pixels.shape[1:] != self.contract.input.shape or pixels.dtype != np.uint8:
            raise BackendError(
                f"{self.name} got {pixels.dtype} {pixels.shape}; it takes uint8 (N, *{self.contract.input.shape})"
            )
        probabilities = self.compute(pixels)
        expected = len(pixels), len(self.contract.labels) + self.has_familiarity
        if probabilities.shape != expected or probabilities.dtype != np.float32:
            raise BackendError(
                f"{self.name} answered {probabilities.dtype} {probabilities.shape}; expected float32 {expected}"
            )
        return probabilities

    @abstractmethod
    def compute(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 -> (N, L) float32, or (N, L + 1): the work of `infer`, whose checks have passed.

        Raises:
            BackendError: with the software's own words, if it fails.
        """

    def close(self) -> None:
        """Release what the engine holds; a subclass does so in `release`. Calling it twice does no harm."""
        if not self._is_closed:
            self._is_closed = True
            self.release()

    def release(self) -> None:  # noqa: B027 - an engine need not hold any
        """Release memory and sessions; called once."""


def check_signature(
    contract: ModelContract,
    pixels: tuple[str, Sequence[object]],
    probabilities: tuple[str, Sequence[object]],
    *,
    inputs: int = 1,
) -> None:
    """Require the graph that the contract describes: one input, one probability per label.

    Args:
        contract: the model's.
        pixels: dtype and shape of the first input; its first dimension, the batch, may be anything.
        probabilities: dtype and shape of the first output.
        inputs: how many inputs the graph has.

    Raises:
        ContractError: if it is another graph.
    """
    height, width, _ = contract.input.shape
    labels = len(contract.labels)
    (type_in, shape_in), (type_out, shape_out) = pixels, probabilities
    fits = type_in == "uint8" and list(shape_in[1:]) == [height, width, 3]
    if inputs != 1 or not fits or type_out != "float32" or list(shape_out[1:]) != [labels]:
        raise ContractError(
            f"the model's graph takes {inputs} input, {type_in} {_shape(shape_in)}, and gives {type_out} "
            f"{_shape(shape_out)}; its contract says uint8 (N, {height}, {width}, 3) and float32 (N, {labels}): "
            f"export it again with mineral-export onnx"
        )


def _shape(shape: Sequence[object]) -> str:
    return f"({', '.join(map(str, shape))})"
