"""Checkpoints: weights in safetensors, everything else in JSON, never pickle; written whole or not at all.

A checkpoint is a folder with `model.safetensors` and `config.json`:
`{"checkpoint": id, "model": ModelConfig, "contract": ModelContract, ...}`. Both files carry the same id, so that a pair
from two different epochs, left by a kill between two renames, is noticed. The state from which a run resumes is one
safetensors file with a JSON record in its header, for one rename replaces it.
"""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file
from mineral_batch.model.contract import ModelContract
from mineral_train.model.network import MineralNet, ModelConfig, build_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save_checkpoint(folder: str | Path, model: MineralNet, contract: ModelContract, **extra: Any) -> None:
    """Write a checkpoint, replacing one that is there.

    Args:
        folder: made if absent.
        model: its weights and configuration.
        contract: what to tell whoever uses the weights.
        extra: further JSON values for `config.json`, for example `train`.

    Raises:
        DataError: when it cannot be written (disk full, no permission); an earlier checkpoint is untouched.
    """
    folder = Path(folder)
    identity = uuid.uuid4().hex
    record = {
        "checkpoint": identity,
        "model": model.config.to_json(),
        "contract": json.loads(contract.to_json()),
        **extra,
    }
    with _writing(folder / WEIGHTS) as weights, _writing(folder / CONFIG) as config:
        save_file(_contiguous(model.state_dict()), weights.name, {"checkpoint": identity})
        config.write(json.dumps(record, ensure_ascii=False, indent=1).encode())


def load_checkpoint(folder: str | Path) -> tuple[MineralNet, ModelContract]:
    """The model, on the CPU and in evaluation mode, and its contract.

    Raises:
        DataError: when the folder is no checkpoint, is damaged, or its parts do not fit together.
        ContractError: when the contract contradicts itself.
    """
    folder = Path(folder)
    record = read_config(folder)
    contract = ModelContract.from_json(json.dumps(record["contract"]))
    model = build_model(ModelConfig.from_json(record["model"]), pretrained=False)
    if tuple(model.config.labels) != contract.labels:
        raise DataError(
            f"{folder / CONFIG}: the labels of the model and of the contract differ; "
            "restore the file as training wrote it"
        )
    tensors, header = read_tensors(folder / WEIGHTS)
    if header.get("checkpoint") != record.get("checkpoint"):
        raise DataError(
            f"{folder}: {WEIGHTS} and {CONFIG} are not of one moment; the same `mineral-train fit` again repairs it"
        )
    load_weights(model, tensors, folder / WEIGHTS)
    return model.eval(), contract


def read_config(folder: str | Path) -> dict[str, Any]:
    """The JSON object in a checkpoint's `config.json`.

    Raises:
        DataError: when the folder is no checkpoint.
    """
    path = Path(folder) / CONFIG
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is no checkpoint: it has no {CONFIG}; give the folder that `mineral-train fit -o` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from None
    missing = {"model", "contract"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise DataError(f"{path} is not a checkpoint's: it has no {sorted(missing)[0]!r}")
    return dict(record)


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Put `tensors` into `model`, each into its place.

    Raises:
        DataError: when a name or a shape differs.
    """
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    odd = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if odd:
        raise DataError(
            f"{source} does not fit the model: {odd[0]} has shape {theirs.get(odd[0], 'none')} where the model has "
            f"{mine.get(odd[0], 'none')}, and {len(odd) - 1} more differ; "
            "it belongs to another configuration or label set"
        )
    model.load_state_dict(tensors)


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON record as one file.

    Raises:
        DataError: when it cannot be written; an earlier file is untouched.
    """
    with _writing(path) as file:
        save_file(_contiguous(tensors), file.name, {"state": json.dumps(record, ensure_ascii=False)})


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `save_state` wrote, on the CPU.

    Raises:
        DataError: when the file is damaged.
    """
    tensors, header = read_tensors(path)
    if "state" not in header:
        raise DataError(f"{path} is not the state of a training run; begin again with --restart")
    return tensors, json.loads(header["state"])


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a safetensors file, on the CPU, and the text fields of its header.

    Raises:
        DataError: when the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}; it is missing or was cut off") from None


@contextmanager
def _writing(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` in a folder that is made if absent, with errors that tell the user what to do."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot write {path}: {error}; make room or give another folder") from None


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Safetensors stores the usual row-major order only; a CNN's weights may be channels-last."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
