"""The forms that a model takes on its way to a device, opened behind one function: pictures to probabilities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.backends import BACKENDS, PRECISIONS, open_backend
from mineral_batch.errors import ContractError, DataError
from mineral_export.verify import least_exact

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mineral_batch.backends import Backend
    from mineral_batch.contract import ModelContract
    from mineral_batch.images import Pixels
    from mineral_batch.pipeline import Probabilities
    from mineral_export.verify import Answers

# What opens a file where no engine is named. The portable one, not the fastest: `auto` computes in bfloat16 on some
# processors, and a comparison must not depend on where it is made.
_ENGINES = {".onnx": "onnx-cpu", ".plan": "tensorrt", ".engine": "tensorrt"}


@dataclass(frozen=True)
class Artefact:
    """One open form of a model.

    Attributes:
        name: as the user named it.
        engine: what computes, in words.
        precision: the least exact that takes part, of the file or of the engine: a name in `verify.BUDGETS`.
        contract: the model's.
        answers: (N, H, W, 3) uint8 to (N, L) float32.
    """

    name: str
    engine: str
    precision: str
    contract: ModelContract
    answers: Answers


@contextmanager
def open_artefact(name: str | Path) -> Iterator[Artefact]:
    """Open a checkpoint folder with torch, or a file with an engine: `PATH[@ENGINE[:PRECISION]]`.

    `model.onnx` runs on ONNX Runtime's CPU engine, `model.onnx@openvino:bfloat16` on OpenVINO in bfloat16.

    Raises:
        DataError: if the engine or the precision in the name is unknown, or the folder is no checkpoint.
        BackendError: if the engine cannot be opened.
        ContractError: if the file is no model with a contract.
    """
    path, engine, precision = _parsed(str(name))
    if path.is_dir():
        yield _checkpoint(str(name), path, engine)
        return
    if not path.is_file():
        raise ContractError(f"there is no model {path}: name a checkpoint folder, an ONNX file or an engine")
    backend = open_backend(path, engine or _ENGINES.get(path.suffix, "onnx-cpu"), precision=precision)
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


def _checkpoint(name: str, folder: Path, engine: str) -> Artefact:
    if engine:
        raise DataError(f"{name}: a checkpoint runs on torch; export it for the engine {engine}: mineral-export onnx")
    import torch

    from mineral_export.deployable import Deployable
    from mineral_train.checkpoint import load_checkpoint

    model, contract = load_checkpoint(folder)
    answers = Deployable(model, contract.input).infer
    return Artefact(name, f"torch {torch.__version__}, float32", "float32", contract, answers)


def _opened(name: str, backend: Backend) -> Artefact:
    stored = str(backend.contract.provenance.get("precision", "float32"))
    computed = backend.version.rpartition(" ")[2]
    # An engine may call what it computes by a name that is none of ours; what the file says then stands.
    precision = least_exact((stored, computed))
    words = backend.version if stored == "float32" else f"{backend.version} engine, {stored} graph"
    return Artefact(name, words, precision, backend.contract, _in_parallel(backend))


def _in_parallel(backend: Backend) -> Answers:
    """A batch cut into one piece per thread that the engine takes."""

    def piece(pixels: Pixels) -> Probabilities:
        return backend.infer(pixels).copy()

    def answers(pixels: Pixels) -> Probabilities:
        pieces = [part for part in np.array_split(pixels, backend.workers) if len(part)]
        with ThreadPoolExecutor(len(pieces)) as pool:
            return np.concatenate(list(pool.map(piece, pieces)))

    return answers


def require_same(one: Artefact, other: Artefact) -> None:
    """Two artefacts can be compared if they answer the same question about the same pixels.

    Raises:
        ContractError: if not, saying what differs.
    """
    for what in ("labels", "input"):
        if getattr(one.contract, what) != getattr(other.contract, what):
            raise ContractError(
                f"{one.name} and {other.name} differ in their {what}: these are not two forms of one model"
            )
