"""The protocol of an inference engine and the options it is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

if TYPE_CHECKING:
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities


class Backend(Protocol):
    """An open engine.

    Attributes:
        name: as in `BACKENDS`.
        device: what the engine really runs on and in which precision, in words.
        version: of the engine's software, with its precision and whatever else changes a probability beside the model:
            for what is compiled for a GPU and a batch size, these too.
        contract: what the model says about itself.
        batch_size: a good number of pictures to give at once on this device.
        workers: how many threads may call `infer` at the same time, and should, to keep the device busy.
    """

    name: str
    contract: ModelContract
    batch_size: int
    workers: int

    @property
    def device(self) -> str: ...  # noqa: D102 - above

    @property
    def version(self) -> str: ...  # noqa: D102 - above

    def buffer(self, pictures: int) -> Pixels:
        """Room for a batch, (pictures, H, W, 3) uint8, in memory that the device reads fastest."""
        ...

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities, which the next call may overwrite."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. It is not used afterwards."""
        ...


def is_on_processor(backend: Backend) -> bool:
    """Whether an open engine computes where pictures are decoded, too, and the two share the time."""
    return backend.device.startswith("CPU")


def identity(backend: Backend) -> str:
    """Of an open engine what must be alike for a run to go on with it; of most all that changes a probability.

    An engine that goes on with smaller batches when memory is short has an `identity` beside its `version`, which holds
    the batch that it was asked for: the same command is to go on with its run, however much memory is free this time.
    """
    found: str = getattr(backend, "identity", backend.version)
    return found


Precision = Literal["auto", "float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class Settings:
    """What a backend is opened with.

    Attributes:
        device: index of the GPU; None for the engine's own choice. An engine without GPUs refuses a number.
        batch_size: pictures per call; None for what suits the device.
        precision: of the arithmetic. `auto` is the fastest that keeps the model's accuracy, which the engine then
            names; the others are what the engine computes in, or refuses.
    """

    device: int | None = None
    batch_size: int | None = None
    precision: str = "auto"


DEFAULT = Settings()
