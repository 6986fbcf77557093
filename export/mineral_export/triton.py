"""A model repository for NVIDIA Triton Inference Server: `DIR/NAME/{config.pbtxt, labels.txt, 1/model.*}`.

The schema is `model_config.proto` of https://github.com/triton-inference-server/common.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from mineral_batch.engines.onnx_session import needs_pairs_as_written
from mineral_batch.errors import DataError
from mineral_batch.model.onnx_file import read_contract

if TYPE_CHECKING:
    from mineral_batch.model.contract import ModelContract

Kind = Literal["gpu", "cpu"]
KINDS: tuple[str, ...] = get_args(Kind)

_PLANS = (".plan", ".engine")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Serving:
    """How the server runs the model.

    Attributes:
        max_batch: pictures that the server may give to the model at once.
        delay: microseconds that a request waits for others to share a batch with.
        instances: copies of the model on each device.
        kind: of device.
    """

    max_batch: int = 64
    delay: int = 1000
    instances: int = 1
    kind: Kind = "gpu"


@dataclass(frozen=True)
class _Served:
    """What the configuration says of a model file."""

    platform: str
    file: str
    contract: ModelContract
    smallest: int
    largest: int | None


def write_repository(model: Path, folder: Path, name: str, serving: Serving = Serving()) -> Path:
    """Add a model to a repository.

    Args:
        model: an ONNX file from `export_onnx` or `to_fp16`, or an engine from `mineral-export trt` with its sidecar.
        folder: of the repository; made if it does not exist.
        name: of the model in the server.
        serving: how it is run.

    Returns:
        The model's folder, `folder/name`, which appears whole or not at all.

    Raises:
        ContractError: if the model describes itself nowhere.
        DataError: if the name is not one, the repository has it already, the engine does not take such batches, or the
            server could not run the file or would run it wrongly.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name for a model in a server: letters, digits, '_', '-' and '.' only")
    served = _served(model)
    text = config_text(served.platform, served.contract, name, _within(served, serving, model))
    final = folder / name
    if final.exists():
        raise DataError(f"{final} exists already: remove it, or choose another --name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
            whole = Path(temporary, name)
            (whole / "1").mkdir(parents=True)
            shutil.copyfile(model, whole / "1" / served.file)
            (whole / "config.pbtxt").write_text(text, "utf-8")
            (whole / "labels.txt").write_text("".join(f"{label}\n" for label in served.contract.labels), "utf-8")
            whole.rename(final)
    except OSError as error:
        raise DataError(f"cannot write {final}: {error.strerror or error}") from None
    return final


def _served(model: Path) -> _Served:
    if model.suffix not in _PLANS:
        contract = read_contract(model)
        if needs_pairs_as_written(contract):
            raise DataError(
                f"{model} rounds to 8 bits beside FP16, which the server's ONNX Runtime rewrites to other answers, and "
                f"there no option forbids it: serve its engine (mineral-export trt {model} --precision as-is)"
            )
        return _Served("onnxruntime_onnx", "model.onnx", contract, 1, None)
    from mineral_batch.engines.tensorrt.plan import read_record

    record = read_record(model)
    if record.runtime != "tensorrt":
        raise DataError(f"{model} is an engine of {record.runtime}, and the server loads those of tensorrt: build one")
    profile = record.profile
    return _Served("tensorrt_plan", "model.plan", record.contract, profile.smallest, profile.largest)


def _within(served: _Served, serving: Serving, model: Path) -> Serving:
    """The server gives batches from 1 to `max_batch`; an engine must take them all."""
    if served.smallest > 1 or (served.largest is not None and served.largest < serving.max_batch):
        raise DataError(
            f"{model} takes {served.smallest} to {served.largest} pictures at once, the server would give it 1 to "
            f"{serving.max_batch}: build it with another batch profile, or lower --max-batch"
        )
    return serving


def config_text(platform: str, contract: ModelContract, name: str, serving: Serving) -> str:
    """`config.pbtxt`: the batch dimension is left out of `dims`, as `max_batch_size` above 0 demands."""
    height, width, channels = contract.input.shape
    return f"""\
# {_quoted(contract.name)[1:-1]}: probabilities of {len(contract.labels)} labels.
name: {_quoted(name)}
platform: "{platform}"
max_batch_size: {serving.max_batch}
input [
  {{ name: "pixels" data_type: TYPE_UINT8 dims: [ {height}, {width}, {channels} ] }}
]
output [
  {{ name: "probabilities" data_type: TYPE_FP32 dims: [ {len(contract.labels)} ] label_filename: "labels.txt" }}
]
dynamic_batching {{ max_queue_delay_microseconds: {serving.delay} }}
instance_group [
  {{ kind: KIND_{serving.kind.upper()} count: {serving.instances} }}
]
parameters {{ key: "mineral.contract" value: {{ string_value: {_quoted(contract.to_json())} }} }}
"""


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
