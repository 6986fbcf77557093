"""Checkpoints: weights in safetensors, everything else in JSON, never pickle; each file appears whole or not at all.

A checkpoint is a folder with `model.safetensors` and `config.json`:
`{"checkpoint": id, "model": ModelConfig, "contract": ModelContract, ...}`. Both files carry the same id, so that a pair
from two different epochs, left by a kill between two renames, is noticed; `finish_checkpoint` completes it. The state
from which a run resumes is one safetensors file with a JSON record in its header, because one file can be replaced
atomically.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mineral_batch.errors import DataError, plain_reason
from mineral_batch.files import cannot_write
from mineral_batch.model.contract import ModelContract
from mineral_train.model.network import MineralNet, ModelConfig, build_model

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
_PAIR = "checkpoint"  # of which both files are staged together
_READY = ".checkpoint.ready"


def save_checkpoint(folder: str | Path, model: MineralNet, contract: ModelContract, **extra: Any) -> None:
    """Write a checkpoint, replacing the one that is there.

    Args:
        folder: created if missing.
        model: its weights and configuration.
        contract: of these weights.
        extra: further JSON values for `config.json`, for example `train`.

    Raises:
        DataError: if it cannot be written (disk full, no permission); an earlier checkpoint is untouched.
    """
    folder = Path(folder)
    identity = uuid.uuid4().hex
    record = {
        "checkpoint": identity,
        "model": model.config.to_json(),
        "contract": json.loads(contract.to_json()),
        **extra,
    }
    finish_checkpoint(folder)
    with _staged(folder / _PAIR) as pair:
        weights, config = pair.parent / WEIGHTS, pair.parent / CONFIG
        with _write_errors(folder / WEIGHTS):
            save_file(_contiguous(model.state_dict()), weights, {"checkpoint": identity})
            _flush(weights)
        with _write_errors(folder / CONFIG):
            config.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
            _flush(config)
        with _write_errors(folder / WEIGHTS):
            pair.parent.rename(folder / _READY)
    finish_checkpoint(folder)


def finish_checkpoint(folder: Path) -> None:
    """Put a complete new pair of files in place: after writing it, or after a kill in the middle of that.

    Two files cannot be renamed at once. So both are complete in a folder of their own, whose rename to `_READY` is the
    moment from which the new pair counts; a kill after it is made good here.

    Raises:
        DataError: if the files cannot be renamed.
    """
    ready = folder / _READY
    if not ready.is_dir():
        return
    for name in (WEIGHTS, CONFIG):
        with _write_errors(folder / name):
            if (ready / name).exists():
                (ready / name).replace(folder / name)
    _sync_folder(folder)
    shutil.rmtree(ready, ignore_errors=True)


def load_checkpoint(folder: str | Path) -> tuple[MineralNet, ModelContract]:
    """Load the model, on the CPU and in evaluation mode, and its contract.

    Raises:
        DataError: if the folder is not a checkpoint, is damaged, or its parts do not fit together.
        ContractError: if the contract contradicts itself.
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
    require_pair(folder)
    load_weights(model, read_tensors(folder / WEIGHTS)[0], folder / WEIGHTS)
    return model.eval(), contract


def require_pair(folder: Path) -> None:
    """Check that both files of a checkpoint are there, whole, and from the same moment; reads only their headers.

    Raises:
        DataError: naming the file that is missing or damaged.
    """
    identity = read_config(folder).get("checkpoint")
    with _reading(folder / WEIGHTS) as file:
        header = file.metadata() or {}
    if header.get("checkpoint") != identity:
        raise DataError(
            f"{folder}: {WEIGHTS} and {CONFIG} are from different epochs; rerun the same `mineral-train fit` command"
        )


def read_config(folder: str | Path) -> dict[str, Any]:
    """Read the JSON object in a checkpoint's `config.json`.

    Raises:
        DataError: if the folder is not a checkpoint.
    """
    path = Path(folder) / CONFIG
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} is not a checkpoint: it has no {CONFIG}; give the folder that `mineral-train fit -o` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {plain_reason(error)}") from None
    missing = {"model", "contract"} - set(record if isinstance(record, dict) else ())
    if missing:
        raise DataError(f"{path} does not belong to a checkpoint: it has no {sorted(missing)[0]!r}")
    return dict(record)


def load_weights(model: torch.nn.Module, tensors: dict[str, torch.Tensor], source: Path) -> None:
    """Copy `tensors` into `model` by name.

    Raises:
        DataError: if a name or a shape differs.
    """
    mine = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    different = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if different:
        raise DataError(
            f"{source} does not fit the model: {different[0]} has shape {theirs.get(different[0], 'none')} where the "
            f"model has {mine.get(different[0], 'none')}, and {len(different) - 1} more differ; "
            "it belongs to another configuration or label set"
        )
    model.load_state_dict(tensors)


def save_state(path: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and a JSON record as one file.

    Raises:
        DataError: if a tensor has a value that is not finite, or the file cannot be written; an earlier file is
            untouched.
    """
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise DataError(f"{broken[0]} and {len(broken) - 1} more tensors have values that are not finite")
    with _staged(path) as staged, _write_errors(path):
        save_file(_contiguous(tensors), staged, {"state": json.dumps(record, ensure_ascii=False)})
        _publish(staged, path)


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, on the CPU.

    Raises:
        DataError: if the file is damaged.
    """
    tensors, header = read_tensors(path)
    if "state" not in header:
        raise DataError(f"{path} is not the state of a training run; start again with --restart")
    return tensors, json.loads(header["state"])


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read the tensors of a safetensors file, on the CPU, and the text fields of its header.

    Raises:
        DataError: if the file is missing or damaged.
    """
    with _reading(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Open a safetensors file; opening checks the header and the file's length."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot read {path}: {plain_reason(error)}; it is missing or was cut off") from None


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Create a private folder beside `path` and give a path inside it; the folder is removed at the end.

    A folder, because safetensors writes a temporary file of its own beside the one it is given. Its name is one that
    `files.remove_leftovers` knows.
    """
    folder = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    with _write_errors(path):
        folder.mkdir(parents=True)
    try:
        yield folder / path.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(staged: Path, path: Path) -> None:
    """Flush a complete file to disk and rename it to `path`, with the permissions that a new file has here.

    safetensors creates its files with mode 0600, whatever the umask.
    """
    with _write_errors(path):
        _flush(staged)
        staged.replace(path)
        _sync_folder(path.parent)


def _flush(staged: Path) -> None:
    """Flush a complete file to disk, with the permissions that a new file has here."""
    probe = staged.with_name("mode")
    probe.touch()
    staged.chmod(probe.stat().st_mode & 0o777)
    probe.unlink()
    # Opened by its name: safetensors renamed a file of its own to it, so a handle from before is another file.
    _sync(staged, os.O_RDWR)


def _sync_folder(folder: Path) -> None:
    """Flush renames in a folder to disk."""
    if os.name == "posix":
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn an error of the block into one line that names `path`; safetensors hides the system's number in a text."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise cannot_write(path, OSError(code, os.strerror(code) if number else str(error))) from None


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy to the CPU in row-major order, the only one safetensors stores; a CNN's weights may be channels-last."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
