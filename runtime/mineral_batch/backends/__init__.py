"""Inference engines behind one protocol. A backend's packages are imported when it is opened, not before."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mineral_batch.errors import BackendError, ContractError

if TYPE_CHECKING:
    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities


class Backend(Protocol):
    """An open engine.

    Attributes:
        name: as in `BACKENDS`.
        device: what the engine really runs on, in words.
        contract: what the model says about itself.
        batch_size: a good number of pictures to give at once on this device.
    """

    name: str
    device: str
    contract: ModelContract
    batch_size: int

    def infer(self, pixels: Pixels) -> Probabilities:
        """(N, H, W, 3) uint8 RGB -> (N, L) float32 probabilities."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. It is not used afterwards."""
        ...


#: name -> "module:function(path, device index) -> Backend". The order is the order in which `auto` tries.
BACKENDS = {
    "onnx-cuda": "mineral_batch.backends.onnx_runtime:open_cuda",
    "onnx-cpu": "mineral_batch.backends.onnx_runtime:open_cpu",
}
AUTO = "auto"


def open_backend(model: str | Path, name: str = AUTO, *, device: int = 0) -> Backend:
    """Open a model file on the engine asked for, or with `auto` on the first one that truly works here.

    An engine asked for by name is opened or refused; there is no falling back from it.

    Args:
        model: an ONNX file written by `mineral-export`.
        name: one of `BACKENDS`, or `auto`.
        device: index of the GPU, for engines that use one.

    Raises:
        BackendError: if the engine cannot be opened; with `auto`, if none can, with each one's reason.
        ContractError: if the file is no model with a contract.
    """
    path = Path(model)
    if not path.is_file():
        raise ContractError(f"no such model file: {path}")
    if name != AUTO:
        return _open(name, path, device)
    reasons = []
    for candidate in BACKENDS:
        try:
            return _open(candidate, path, device)
        except BackendError as error:
            reasons.append(f"{candidate}: {error}")
    raise BackendError("no engine works here: " + "; ".join(reasons))


def _open(name: str, path: Path, device: int) -> Backend:
    if name not in BACKENDS:
        raise BackendError(f"no engine is called '{name}'; there are: {', '.join([AUTO, *BACKENDS])}")
    module, function = BACKENDS[name].split(":")
    backend: Backend = getattr(importlib.import_module(module), function)(path, device)
    return backend
