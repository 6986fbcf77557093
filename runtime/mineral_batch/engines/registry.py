"""The engines by name, behind one protocol. An engine's packages are imported when it is opened, not before.

An engine of another package registers itself by the entry-point group `mineral_batch.engines`; CONTRIBUTING.md shows
how.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from mineral_batch.engines.base import PRECISIONS, Backend, EngineOptions, Tuning
from mineral_batch.errors import BackendError, ContractError, MineralError
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.system import pip_install

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GROUP = "mineral_batch.engines"
#: Name -> `module:function`, called as `function(path, EngineOptions)`; it returns a `Backend`.
BACKENDS = {
    "onnx-cuda": "mineral_batch.engines.onnx_cuda:open_cuda",
    "openvino": "mineral_batch.engines.openvino:open_openvino",
    "onnx-cpu": "mineral_batch.engines.onnx_cpu:open_cpu",
    "onnx-tensorrt": "mineral_batch.engines.onnx_tensorrt:open_tensorrt",
    "tensorrt": "mineral_batch.engines.tensorrt.open:open_tensorrt",
}
AUTO = "auto"
#: Of TensorRT's own files, which are no ONNX models.
PLAN_SUFFIXES = (".plan", ".engine")
#: What `auto` tries: fastest first, among those that compute as the model was measured. By name only: TensorRT, which
#: builds an engine for minutes before the first image, and OpenVINO, whose gain is bfloat16, which changes the
#: probabilities, and whose float32 is little faster.
AUTO_ORDER = ("onnx-cuda", "onnx-cpu")


@dataclass(frozen=True)
class Choice:
    """The engine that was opened, and why none of the faster ones.

    Attributes:
        backend: the open engine.
        skipped: name -> reason, for each engine that `auto` tried before; empty if the user named one.
    """

    backend: Backend
    skipped: Mapping[str, str] = field(default_factory=dict)


def engine_names() -> tuple[str, ...]:
    """All engines that can be named here: the built-in ones, then those of other packages."""
    return (*BACKENDS, *_third_party())


def open_backend(
    model: str | Path,
    name: str = AUTO,
    *,
    devices: Sequence[int] = (),
    batch_size: int | None = None,
    precision: str = "auto",
    tuning: Tuning | None = None,
) -> Backend:
    """Open a model and return the backend alone; see `choose_backend`."""
    return choose_backend(
        model, name, devices=devices, batch_size=batch_size, precision=precision, tuning=tuning
    ).backend


def choose_backend(
    model: str | Path,
    name: str = AUTO,
    *,
    devices: Sequence[int] = (),
    batch_size: int | None = None,
    precision: str = "auto",
    tuning: Tuning | None = None,
    familiarity: bool = False,
) -> Choice:
    """Open a model file on the named engine, or with `auto` on the first of `AUTO_ORDER` that works here.

    A named engine is opened or refused; another one never takes its place. A TensorRT plan needs no name.

    Args:
        model: an ONNX file or a TensorRT plan written by `mineral-export`.
        name: one of `engine_names()`, or `auto`.
        devices: indices of the GPUs to use side by side; empty for the first GPU, or the CPU where there is none.
        batch_size: images per call; None for what suits the device.
        precision: one of `PRECISIONS`; see `EngineOptions`.
        tuning: further switches; None for the defaults.
        familiarity: also give the familiarity of images, which not every engine can.

    Raises:
        BackendError: if the engine cannot be opened; with `auto`, if none can, with each one's reason.
        ContractError: if the file is not a model with a contract.
    """
    path = Path(model)
    if not path.is_file():
        raise ContractError(f"no such model file: {path}")
    if precision not in PRECISIONS:
        raise BackendError(f"no precision is called '{precision}'; there are: {', '.join(PRECISIONS)}")
    if familiarity:
        _require_familiarity(path)
    options = EngineOptions(
        batch_size=batch_size, precision=precision, tuning=tuning or Tuning(), familiarity=familiarity
    )
    if name == AUTO and path.suffix in PLAN_SUFFIXES:
        name = "tensorrt"  # the only engine that runs them
    if name != AUTO:
        return Choice(_open(name, path, options, devices))
    reasons: dict[str, str] = {}
    for candidate in AUTO_ORDER:
        try:
            return Choice(_open(candidate, path, options, devices), reasons)
        except BackendError as error:
            reasons[candidate] = str(error)
    if not _is_installed("onnxruntime"):
        raise BackendError(
            f"no inference engine is installed: {pip_install('cpu')}, or with an NVIDIA GPU {pip_install('gpu')}"
        )
    raise BackendError("no engine works here: " + "; ".join(f"{name}: {why}" for name, why in reasons.items()))


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # set to None in sys.modules
        return False


def _require_familiarity(path: Path) -> None:
    if path.suffix in PLAN_SUFFIXES:
        raise BackendError("a TensorRT engine does not give the familiarity of images: name the ONNX file")
    if read_contract(path).familiarity is None:
        raise ContractError(
            f"{path} has no familiarity; add it once, with its training images: "
            f"mineral-train familiarity {path} MANIFEST.csv"
        )


def _open(name: str, path: Path, options: EngineOptions, devices: Sequence[int]) -> Backend:
    """One engine, or one on each of several devices behind a `DeviceGroup`."""
    if len(set(devices)) != len(devices):
        raise BackendError(f"a device is named twice: {', '.join(map(str, devices))}")
    entry = _entry(name)
    if len(devices) <= 1:
        return _open_one(entry, path, replace(options, device=devices[0] if devices else None))
    from mineral_batch.engines.device_group import DeviceGroup

    return DeviceGroup.open(lambda device: _open_one(entry, path, replace(options, device=device)), devices)


def _entry(name: str) -> EntryPoint:
    if name in BACKENDS:
        return EntryPoint(name, BACKENDS[name], GROUP)
    try:
        return _third_party()[name]
    except KeyError:
        raise BackendError(f"no engine is called '{name}'; there are: {', '.join([AUTO, *engine_names()])}") from None


def _third_party() -> dict[str, EntryPoint]:
    """Engines of other packages; none of them takes the place of a built-in one."""
    return {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in (AUTO, *BACKENDS)}


def _open_one(entry: EntryPoint, path: Path, options: EngineOptions) -> Backend:
    if entry.name in BACKENDS:
        backend: Backend = entry.load()(path, options)
        return backend
    try:
        opened = entry.load()(path, options)
    except MineralError:
        raise
    except Exception as error:  # code of another package
        raise BackendError(f"the engine {entry.name} ({entry.value}) does not open: {error}") from error
    if not isinstance(opened, Backend):
        raise BackendError(
            f"the engine {entry.name} ({entry.value}) returned a {type(opened).__name__}, which is not a "
            f"mineral_batch.engines.base.Backend: update the package that it comes from"
        )
    return opened
