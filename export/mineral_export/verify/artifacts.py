"""Open any form of a model (checkpoint, ONNX file, TensorRT engine) behind one function: images to probabilities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.engines.base import PRECISIONS, Engine, EngineInfo
from mineral_batch.engines.registry import engine_names, open_backend
from mineral_batch.errors import ContractError, DataError
from mineral_batch.storage.urls import is_url
from mineral_export.verify.budget import least_exact
from mineral_train.model.fetched import fetch_model, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities
    from mineral_export.verify.parity import Model
    from mineral_train.model.network import MineralNet

# The engine of a file for which none is named. The portable one, not the fastest: `auto` computes in bfloat16 on some
# processors, and a comparison must not depend on the machine.
_DEFAULT_ENGINES = {".onnx": "onnx-cpu", ".plan": "tensorrt", ".engine": "tensorrt"}

# Images per call of torch unless told otherwise, as in most scripts.
_TORCH_BATCH = 8


@dataclass(frozen=True)
class ArtifactInfo:
    """What is known of an artifact once it is open.

    Attributes:
        name: as the user wrote it.
        engine: engine, version and precision in words.
        precision: the least exact of the file's and the engine's: a name in `BUDGETS`.
        contract: the model's.
    """

    name: str
    engine: str
    precision: str
    contract: ModelContract


@dataclass(frozen=True)
class Artifact(ArtifactInfo):
    """An open form of a model.

    Attributes:
        predict: (N, H, W, 3) uint8 to (N, L) float32, on all threads that the engine takes.
        backend: the engine.
    """

    predict: Model
    backend: Backend


@dataclass(frozen=True)
class ArtifactSpec:
    """A form of a model and the engine that is to run it.

    Attributes:
        path: a checkpoint folder or a file.
        engine: one of `mineral_batch.engines.registry.engine_names()`; `torch` for a checkpoint.
        precision: one of `mineral_batch.engines.base.PRECISIONS`.
    """

    path: Path
    engine: str
    precision: str

    @property
    def weights(self) -> Path:
        """The file that holds the weights."""
        if self.path.is_file():
            return self.path
        from mineral_train.training.checkpoint import WEIGHTS

        return self.path / WEIGHTS


def parse_artifact(name: str | Path) -> ArtifactSpec:
    """Parse `PATH[@ENGINE[:PRECISION]]`; nothing is opened.

    Raises:
        DataError: if the engine or the precision is unknown, or a checkpoint is to run on another engine than torch.
        ContractError: if there is neither a folder nor a file of that name.
    """
    path, engine, precision = _parts(str(name))
    if path.is_dir():
        if engine:
            raise DataError(f"{name}: a checkpoint runs on torch; for {engine}, export it first: mineral-export onnx")
        return ArtifactSpec(path, "torch", precision)
    if not path.is_file():
        raise ContractError(f"there is no model {path}: name a checkpoint folder, an ONNX file or an engine")
    return ArtifactSpec(path, engine or _DEFAULT_ENGINES.get(path.suffix, "onnx-cpu"), precision)


def _parts(name: str) -> tuple[Path, str, str]:
    """Split into path, engine (empty if none is named) and precision; a name that exists as a path is a path."""
    path, _, rest = name.rpartition("@")
    engine, _, precision = rest.partition(":")
    is_whole = not path or Path(name).exists() or (is_url(name) and engine not in engine_names())
    if is_whole:  # the @ of a URL may be that of a user or a revision
        return fetch_model(name), "", "auto"
    if engine not in engine_names():
        raise DataError(f"{name}: no engine is called '{engine}'; there are: {', '.join(engine_names())}")
    if precision and precision not in PRECISIONS:
        raise DataError(f"{shown(name)}: no precision is called '{precision}'; there are: {', '.join(PRECISIONS)}")
    return fetch_model(path), engine, precision or "auto"


@contextmanager
def open_artifact(name: str | Path, batch_size: int | None = None) -> Iterator[Artifact]:
    """Open a checkpoint folder with torch, or a file with an engine.

    Args:
        name: `PATH[@ENGINE[:PRECISION]]`: `model.onnx` runs on ONNX Runtime's CPU engine,
            `model.onnx@openvino:bfloat16` on OpenVINO in bfloat16.
        batch_size: images per call that the engine prepares for; None for what suits it.

    Raises:
        DataError: if the engine or the precision in the name is unknown, or the folder is not a checkpoint.
        BackendError: if the engine cannot be opened.
        ContractError: if the file is not a model with a contract.
    """
    spec = parse_artifact(name)
    if spec.path.is_dir():
        backend: Backend = _open_checkpoint(spec.path, batch_size)
    else:
        backend = open_backend(spec.path, spec.engine, batch_size=batch_size, precision=spec.precision)
    try:
        yield _artifact(shown(name), backend)
    finally:
        backend.close()


def _artifact(name: str, backend: Backend) -> Artifact:
    stored = backend.contract.numerics.precision
    # An engine of mixed precision has no budget of its own; then the file's precision stands.
    precision = least_exact((stored, backend.info.precision))
    engine = backend.version if stored == "float32" else f"{backend.version} engine, {stored} graph"
    return Artifact(name, engine, precision, backend.contract, _on_all_threads(backend), backend)


def _on_all_threads(backend: Backend) -> Model:
    """Cut each batch into one piece for each thread that the engine takes."""

    def predict_piece(pixels: Pixels) -> Probabilities:
        return backend.infer(pixels).copy()

    def predict(pixels: Pixels) -> Probabilities:
        pieces = [part for part in np.array_split(pixels, backend.workers) if len(part)]
        with ThreadPoolExecutor(len(pieces)) as pool:
            return np.concatenate(list(pool.map(predict_piece, pieces)))

    return predict


def _open_checkpoint(folder: Path, batch_size: int | None) -> _TorchEngine:
    from mineral_train.training.checkpoint import load_checkpoint

    return _TorchEngine(*load_checkpoint(folder), batch_size or _TORCH_BATCH)


class _TorchEngine(Engine):
    """A checkpoint on the CPU, one batch on all of torch's threads."""

    name = "torch"

    def __init__(self, model: MineralNet, contract: ModelContract, batch_size: int) -> None:
        import torch

        from mineral_export.export_model import ExportModel

        super().__init__(contract, EngineInfo(f"torch {torch.__version__}", "float32"), batch_size=batch_size)
        self._model = ExportModel(model, contract.input)

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        return self._model.infer(pixels)


def require_same(one: ArtifactInfo, other: ArtifactInfo) -> None:
    """Check that two artifacts can be compared: same labels, same input.

    Raises:
        ContractError: if not, saying what differs.
    """
    for what in ("labels", "input"):
        if getattr(one.contract, what) != getattr(other.contract, what):
            raise ContractError(
                f"{one.name} and {other.name} differ in their {what}: they are not two forms of one model"
            )
