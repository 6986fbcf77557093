"""The forms that a model takes on its way to a device, opened behind one function: pictures to probabilities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.engines.base import PRECISIONS, Engine, EngineInfo
from mineral_batch.engines.registry import BACKENDS, open_backend
from mineral_batch.errors import ContractError, DataError
from mineral_export.verify.parity import least_exact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.engines.base import Backend
    from mineral_batch.model.contract import ModelContract
    from mineral_batch.types import Pixels, Probabilities
    from mineral_export.verify.parity import Answers
    from mineral_train.model.network import MineralNet

# What opens a file where no engine is named. The portable one, not the fastest: `auto` computes in bfloat16 on some
# processors, and a comparison must not depend on where it is made.
_ENGINES = {".onnx": "onnx-cpu", ".plan": "tensorrt", ".engine": "tensorrt"}


# Pictures that torch gets at once where nothing is said, as most scripts give it.
_TORCH_BATCH = 8


@dataclass(frozen=True)
class Form:
    """What is known of one form of a model once it is open.

    Attributes:
        name: as the user named it.
        engine: what computes, in words.
        precision: the least exact that takes part, of the file or of the engine: a name in `verify.BUDGETS`.
        contract: the model's.
    """

    name: str
    engine: str
    precision: str
    contract: ModelContract


@dataclass(frozen=True)
class Artefact(Form):
    """One open form of a model.

    Attributes:
        answers: (N, H, W, 3) uint8 to (N, L) float32.
        backend: what answers, a batch at a time.
    """

    answers: Answers
    backend: Backend


@dataclass(frozen=True)
class Place:
    """Where a form of a model lies and what is to run it.

    Attributes:
        path: a checkpoint folder or a file.
        engine: one of `mineral_batch.engines.registry.BACKENDS`; `torch` for a checkpoint.
        precision: one of `mineral_batch.engines.base.PRECISIONS`.
    """

    path: Path
    engine: str
    precision: str

    @property
    def weights(self) -> Path:
        """The file that holds them."""
        if self.path.is_file():
            return self.path
        from mineral_train.training.checkpoint import WEIGHTS

        return self.path / WEIGHTS


def find_artefact(name: str | Path) -> Place:
    """What `PATH[@ENGINE[:PRECISION]]` stands for; nothing is opened.

    Raises:
        DataError: if the engine or the precision is unknown, or a checkpoint is to run on another engine than torch.
        ContractError: if there is neither a folder nor a file of that name.
    """
    path, engine, precision = _parsed(str(name))
    if path.is_dir():
        if engine:
            raise DataError(
                f"{name}: a checkpoint runs on torch; export it for the engine {engine}: mineral-export onnx"
            )
        return Place(path, "torch", precision)
    if not path.is_file():
        raise ContractError(f"there is no model {path}: name a checkpoint folder, an ONNX file or an engine")
    return Place(path, engine or _ENGINES.get(path.suffix, "onnx-cpu"), precision)


@contextmanager
def open_artefact(name: str | Path, batch_size: int | None = None) -> Iterator[Artefact]:
    """Open a checkpoint folder with torch, or a file with an engine: `PATH[@ENGINE[:PRECISION]]`.

    `model.onnx` runs on ONNX Runtime's CPU engine, `model.onnx@openvino:bfloat16` on OpenVINO in bfloat16.

    Args:
        name: as above.
        batch_size: pictures that the engine is to be ready for; None for what suits it.

    Raises:
        DataError: if the engine or the precision in the name is unknown, or the folder is no checkpoint.
        BackendError: if the engine cannot be opened.
        ContractError: if the file is no model with a contract.
    """
    place = find_artefact(name)
    if place.path.is_dir():
        backend: Backend = _checkpoint(place.path, batch_size)
    else:
        backend = open_backend(place.path, place.engine, batch_size=batch_size, precision=place.precision)
    try:
        yield _opened(str(name), backend)
    finally:
        backend.close()


def _parsed(name: str) -> tuple[Path, str, str]:
    """Path, engine (empty where none is named) and precision; a path that exists is one, whatever is in it."""
    if "@" not in name or Path(name).exists():
        return Path(name), "", "auto"
    path, _, rest = name.rpartition("@")
    engine, _, precision = rest.partition(":")
    if engine not in BACKENDS:
        raise DataError(f"{name}: no engine is called '{engine}'; there are: {', '.join(BACKENDS)}")
    if precision and precision not in PRECISIONS:
        raise DataError(f"{name}: no precision is called '{precision}'; there are: {', '.join(PRECISIONS)}")
    return Path(path), engine, precision or "auto"


def _checkpoint(folder: Path, batch_size: int | None) -> _TorchEngine:
    from mineral_train.training.checkpoint import load_checkpoint

    return _TorchEngine(*load_checkpoint(folder), batch_size or _TORCH_BATCH)


class _TorchEngine(Engine):
    """A checkpoint as it is deployed, on the CPU: one batch on all of torch's threads; see `Engine`."""

    name = "torch"

    def __init__(self, model: MineralNet, contract: ModelContract, batch_size: int) -> None:
        import torch

        from mineral_export.deployable import Deployable

        super().__init__(contract, EngineInfo(f"torch {torch.__version__}", "float32"), batch_size=batch_size)
        self._deployable = Deployable(model, contract.input)

    def compute(self, pixels: Pixels) -> Probabilities:
        """See `Engine`."""
        return self._deployable.infer(pixels)


def _opened(name: str, backend: Backend) -> Artefact:
    stored = backend.contract.numerics.precision
    # An engine may call what it computes by a name that is none of ours; what the file says then stands.
    precision = least_exact((stored, backend.info.precision))
    words = backend.version if stored == "float32" else f"{backend.version} engine, {stored} graph"
    return Artefact(name, words, precision, backend.contract, _in_parallel(backend), backend)


def _in_parallel(backend: Backend) -> Answers:
    """A batch cut into one piece per thread that the engine takes."""

    def piece(pixels: Pixels) -> Probabilities:
        return backend.infer(pixels).copy()

    def answers(pixels: Pixels) -> Probabilities:
        pieces = [part for part in np.array_split(pixels, backend.workers) if len(part)]
        with ThreadPoolExecutor(len(pieces)) as pool:
            return np.concatenate(list(pool.map(piece, pieces)))

    return answers


def require_same(one: Form, other: Form) -> None:
    """Two artefacts can be compared if they answer the same question about the same pixels.

    Raises:
        ContractError: if not, saying what differs.
    """
    for what in ("labels", "input"):
        if getattr(one.contract, what) != getattr(other.contract, what):
            raise ContractError(
                f"{one.name} and {other.name} differ in their {what}: these are not two forms of one model"
            )
