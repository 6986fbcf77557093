"""Write a model repository for NVIDIA Triton Inference Server: `DIR/NAME/{config.pbtxt, labels.txt, 1/model.*}`.

The schema is `model_config.proto` of https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mineral_batch.engines.onnx_session import needs_pairs_as_written
from mineral_batch.errors import DataError
from mineral_batch.files import atomic_folder, write_errors
from mineral_batch.model.onnx_file import read_contract

if TYPE_CHECKING:
    from mineral_batch.model.contract import ModelContract

_PLANS = (".plan", ".engine")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class ServerConfig:
    """How the server runs the model.

    Attributes:
        max_batch: images that the server may give to the model at once.
        delay: microseconds that a request waits for others to share a batch with.
        instances: copies of the model on each device.
        kind: kind of device.
    """

    max_batch: int = 64
    delay: int = 1000
    instances: int = 1
    kind: Literal["gpu", "cpu"] = "gpu"


@dataclass(frozen=True)
class _ModelFile:
    """What the configuration states about a model file; the engine takes `smallest` to `largest` images at once."""

    platform: str
    name: str
    contract: ModelContract
    smallest: int
    largest: int | None


def write_repository(model: Path, folder: Path, name: str, config: ServerConfig = ServerConfig()) -> Path:
    """Add a model to a repository.

    Args:
        model: an ONNX file from `export_onnx` or `to_fp16`, or an engine of `mineral-export trt` with its description.
        folder: the repository; created if it does not exist.
        name: of the model in the server.
        config: how the server runs it.

    Returns:
        The model's folder, `folder/name`, which appears whole or not at all.

    Raises:
        ContractError: if the model has no contract.
        DataError: if the name is invalid or taken, the engine does not take such batches, or the server cannot run
            the file or would run it wrongly.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is not a valid model name: use letters, digits, '_', '-' and '.'")
    file = _describe(model)
    _require_batches(file, config, model)
    text = config_text(file.platform, file.contract, name, config)
    final = folder / name
    if final.exists():
        raise DataError(f"{final} exists already: remove it, or choose another --name")
    with write_errors(final):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(final) as whole:
            (whole / "1").mkdir()
            shutil.copyfile(model, whole / "1" / file.name)
            (whole / "config.pbtxt").write_text(text, "utf-8")
            (whole / "labels.txt").write_text("".join(f"{label}\n" for label in file.contract.labels), "utf-8")
    return final


def _describe(model: Path) -> _ModelFile:
    if model.suffix not in _PLANS:
        contract = read_contract(model)
        if needs_pairs_as_written(contract):
            raise DataError(
                f"{model} has 8 bits beside FP16, which the server's ONNX Runtime computes wrongly, with no option "
                f"against it: serve its TensorRT engine (mineral-export trt {model} --precision as-is)"
            )
        return _ModelFile("onnxruntime_onnx", "model.onnx", contract, 1, None)
    from mineral_batch.engines.tensorrt.plan import read_record

    record = read_record(model)
    if record.runtime != "tensorrt":
        raise DataError(
            f"{model} is an engine of {record.runtime}; the server loads those of tensorrt: build one with "
            f"mineral-export trt --runtime tensorrt"
        )
    profile = record.profile
    return _ModelFile("tensorrt_plan", "model.plan", record.contract, profile.smallest, profile.largest)


def _require_batches(file: _ModelFile, config: ServerConfig, model: Path) -> None:
    """Check that the engine takes all batches that the server makes, from 1 to `max_batch`."""
    if file.smallest > 1 or (file.largest is not None and file.largest < config.max_batch):
        raise DataError(
            f"{model} takes {file.smallest} to {file.largest} images at once, the server would give it 1 to "
            f"{config.max_batch}: build it with another batch profile, or lower --max-batch"
        )


def config_text(platform: str, contract: ModelContract, name: str, config: ServerConfig) -> str:
    """Return the text of `config.pbtxt`; `dims` have no batch dimension, as `max_batch_size` above 0 demands."""
    height, width, channels = contract.input.shape
    return f"""\
# {_quoted(contract.name)[1:-1]}: probabilities of {len(contract.labels)} labels.
name: {_quoted(name)}
platform: "{platform}"
max_batch_size: {config.max_batch}
input [
  {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {height}, {width}, {channels} ] }}
]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {len(contract.labels)} ] label_filename: "labels.txt" }}
]
dynamic_batching {{ max_queue_delay_microseconds: {config.delay} }}
instance_group [
  {{ kind: KIND_{config.kind.upper()} count: {config.instances} }}
]
parameters {{ key: "mineral.contract" value: {{ string_value: {_quoted(contract.to_json())} }} }}
"""


def _quoted(text: str) -> str:
    """Quote a string for protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
