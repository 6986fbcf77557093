"""Inference engines behind one protocol. A backend's packages are imported when it is opened, not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.engines.base import PRECISIONS, Backend, Settings
from mineral_batch.errors import BackendError, ContractError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


#: name -> "module:function(path, Settings) -> Backend".
BACKENDS = {
    "onnx-cuda": "mineral_batch.engines.onnx_cuda:open_cuda",
    "openvino": "mineral_batch.engines.openvino:open_openvino",
    "onnx-cpu": "mineral_batch.engines.onnx_cpu:open_cpu",
    "onnx-tensorrt": "mineral_batch.engines.onnx_tensorrt:open_tensorrt",
    "tensorrt": "mineral_batch.engines.tensorrt.engine:open_tensorrt",
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
    from mineral_batch.engines.device_group import DeviceGroup

    return DeviceGroup.of(lambda device: opener(path, replace(settings, device=device)), devices)


def _known_precision(precision: str) -> str:
    if precision not in PRECISIONS:
        raise BackendError(f"no precision is called '{precision}'; there are: {', '.join(PRECISIONS)}")
    return precision
