"""Inference engines behind one protocol. A backend's packages are imported when it is opened, not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from mineral_batch.errors import BackendError, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities


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

#: name -> "module:function(path, Settings) -> Backend".
BACKENDS = {
    "onnx-cuda": "mineral_batch.backends.onnx_cuda:open_cuda",
    "openvino": "mineral_batch.backends.openvino:open_openvino",
    "onnx-cpu": "mineral_batch.backends.onnx_runtime:open_cpu",
    "onnx-tensorrt": "mineral_batch.backends.onnx_tensorrt:open_tensorrt",
    "tensorrt": "mineral_batch.backends.tensorrt:open_tensorrt",
}
AUTO = "auto"
# Fastest first, among those that compute as the model was measured. Left to those who ask: TensorRT, which builds an
# engine for minutes before the first picture, and OpenVINO, whose gain is bfloat16 and whose float32 is no faster.
_AUTO_ORDER = ("onnx-cuda", "onnx-cpu")


@dataclass(frozen=True)
class Choice:
    """The engine that was opened, and why none of the faster ones.

    Attributes:
        backend: open.
        passed_over: name -> reason, for each engine that `auto` tried before; empty if one was asked for.
    """

    backend: Backend
    passed_over: Mapping[str, str] = field(default_factory=dict)


def open_backend(
    model: str | Path,
    name: str = AUTO,
    *,
    devices: Sequence[int] = (),
    batch_size: int | None = None,
    precision: str = "auto",
) -> Backend:
    """The backend of `choose_backend`, which see, without the reasons."""
    return choose_backend(model, name, devices=devices, batch_size=batch_size, precision=precision).backend


def choose_backend(
    model: str | Path,
    name: str = AUTO,
    *,
    devices: Sequence[int] = (),
    batch_size: int | None = None,
    precision: str = "auto",
) -> Choice:
    """Open a model file on the engine asked for, or with `auto` on the fastest one that truly works here.

    An engine asked for by name is opened or refused; there is no falling back from it.

    Args:
        model: an ONNX file written by `mineral-export`.
        name: one of `BACKENDS`, or `auto`.
        devices: indices of the GPUs to use side by side; empty for the first GPU, or the CPU where there is none.
        batch_size: pictures per call; None for what suits the device.
        precision: one of `PRECISIONS`; see `Settings`.

    Raises:
        BackendError: if the engine cannot be opened; with `auto`, if none can, with each one's reason.
        ContractError: if the file is no model with a contract.
    """
    path = Path(model)
    if not path.is_file():
        raise ContractError(f"no such model file: {path}")
    settings = Settings(batch_size=batch_size, precision=_known_precision(precision))
    if name != AUTO:
        return Choice(_open(name, path, settings, devices))
    reasons: dict[str, str] = {}
    for candidate in _AUTO_ORDER:
        try:
            return Choice(_open(candidate, path, settings, devices), reasons)
        except BackendError as error:
            reasons[candidate] = str(error)
    raise BackendError("no engine works here: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))


def _open(name: str, path: Path, settings: Settings, devices: Sequence[int]) -> Backend:
    """One session, or one on each of several devices behind a `DeviceGroup`."""
    if name not in BACKENDS:
        raise BackendError(f"no engine is called '{name}'; there are: {', '.join([AUTO, *BACKENDS])}")
    if len(set(devices)) != len(devices):
        raise BackendError(f"a device is named twice: {', '.join(map(str, devices))}")
    module, function = BACKENDS[name].split(":")
    opener = getattr(importlib.import_module(module), function)
    if len(devices) <= 1:
        only: Backend = opener(path, replace(settings, device=devices[0] if devices else None))
        return only
    from mineral_batch.backends.device_group import DeviceGroup

    return DeviceGroup.of(lambda device: opener(path, replace(settings, device=device)), devices)


def _known_precision(precision: str) -> str:
    if precision not in PRECISIONS:
        raise BackendError(f"no precision is called '{precision}'; there are: {', '.join(PRECISIONS)}")
    return precision
