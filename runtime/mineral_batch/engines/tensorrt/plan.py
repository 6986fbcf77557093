"""An engine file and its description: plain plan bytes, and beside them `NAME.json`.

Nothing is put in front of the plan, so that trtexec and Triton load it as it is. An engine runs only on the software
and the kind of GPU that it was built for; elsewhere it would fail late or, worse, give another model's probabilities.
So each of these facts is checked before the plan is loaded, and an engine that does not fit is refused with the command
that builds it again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from mineral_batch.engines.registry import PLAN_SUFFIXES
from mineral_batch.errors import BackendError, ContractError, plain_reason
from mineral_batch.files import atomic_file
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import graph_digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.tensorrt.library import Library

SCHEMA_VERSION = 2
SUFFIXES = PLAN_SUFFIXES
# What --hardware-compatible promises: Ampere and everything newer.
_AMPERE = (8, 0)


@dataclass(frozen=True)
class Profile:
    """How many images an engine takes at once.

    Attributes:
        smallest: at least this many.
        optimum: the kernels are chosen for this many.
        largest: at most this many; all three alike for a fixed batch, which is the fastest.
    """

    smallest: int
    optimum: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.optimum <= self.largest:
            raise ContractError(
                f"a batch profile is 1 <= smallest <= optimum <= largest, got {self.smallest}, {self.optimum}, "
                f"{self.largest}"
            )


@dataclass(frozen=True)
class EngineRecord:
    """What is written beside an engine.

    Attributes:
        contract: of the model.
        source: name of the ONNX file that it was built from.
        onnx_sha256: of that file's graph, without its metadata.
        engine_sha256: of the plan.
        runtime: a key of `library.RUNTIMES`.
        version: of that package.
        cuda: newest version that the driver of the building machine runs; empty where there was no driver.
        gpu: of the building machine; empty where the engine was built without one.
        compute_capabilities: that it was built for, such as `8.9`.
        precision: of its matrix products: `float16`, `float32`, ..., `mixed`, or `TF32 allowed`.
        products: how many matrix products there are in each precision.
        layers: how many layers there are of each precision.
        layers_from: `engine`, as the engine inspector tells, or `typed network`, where there is no GPU to load the
            engine on; TensorRT is bound to the types of a strongly typed network.
        profile: how many images it takes.
        inputs: name -> dtype and shape.
        outputs: name -> dtype and shape.
        rebuild: the command that builds it again.
        version_compatible: also runs on later releases of the same major version.
        hardware_compatible: also runs on every GPU since Ampere.
        compared: the difference between its probabilities and the ONNX file's, in words; empty until it has run.
    """

    contract: ModelContract
    source: str
    onnx_sha256: str
    engine_sha256: str
    runtime: str
    version: str
    cuda: str
    gpu: str
    compute_capabilities: tuple[str, ...]
    precision: str
    products: Mapping[str, int]
    layers: Mapping[str, int]
    layers_from: str
    profile: Profile
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    rebuild: str
    version_compatible: bool = False
    hardware_compatible: bool = False
    compared: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_json(self) -> str:
        """Indented, for people too; `from_json` reads it back to an equal record."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a record.

        Raises:
            ContractError: if it is none, or of another schema version.
        """
        try:
            found: dict[str, Any] = json.loads(text)
            known = {one.name for one in fields(cls)}
            if found["schema_version"] != SCHEMA_VERSION or set(found) != known:
                raise ContractError("it is of another version of mineral-batch")
            found["contract"] = ModelContract.from_json(json.dumps(found["contract"]))
            found["profile"] = Profile(**found["profile"])
            found["compute_capabilities"] = tuple(found["compute_capabilities"])
            return cls(**found)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ContractError(f"it is not an engine description ({plain_reason(error)})") from None


def sidecar_path(engine: Path) -> Path:
    """`model.plan` -> `model.plan.json`."""
    return engine.with_name(engine.name + ".json")


def rebuild_command(engine: Path, source: str, *options: str) -> str:
    """Return the command that builds an engine again."""
    return shlex.join(["mineral-export", "trt", source, "-o", engine.name, *options])


def write_engine(path: Path, plan: bytes, record: EngineRecord) -> None:
    """Write the plan and its description: both or none.

    Raises:
        BackendError: if the files cannot be written.
    """
    try:
        # The inner one gets its name first: a plan that is named has its description.
        with atomic_file(path) as engine, atomic_file(sidecar_path(path)) as description:
            engine.write(plan)
            description.write(record.to_json().encode())
    except OSError as error:
        raise BackendError(f"cannot write the engine {path}: {error.strerror or error}") from None


def read_record(path: Path) -> EngineRecord:
    """The description beside an engine.

    Raises:
        ContractError: if it is missing or damaged.
    """
    sidecar = sidecar_path(path)
    try:
        return EngineRecord.from_json(sidecar.read_text("utf-8"))
    except FileNotFoundError:
        raise ContractError(
            f"{path} has no description {sidecar.name} beside it (labels, thresholds, what it was built for): "
            f"copy that too, or build the engine with `mineral-export trt`"
        ) from None
    except (OSError, UnicodeDecodeError, ContractError) as error:
        raise ContractError(
            f"{sidecar}: {plain_reason(error)}; build the engine again with `mineral-export trt`"
        ) from None


def read_engine(path: Path, library: Library, gpu: Gpu) -> tuple[EngineRecord, bytes]:
    """An engine that fits this software, this GPU and its description.

    Raises:
        ContractError: if the description is missing or damaged.
        BackendError: if the engine is not the one described, is older than the model beside it, or was built for
            other software or another GPU.
    """
    record = read_record(path)
    plan = path.read_bytes()
    why = _misfit(path, plan, record, library, gpu)
    if why:
        raise BackendError(f"{path} {why}; build it again: {record.rebuild}")
    return record, plan


def _misfit(path: Path, plan: bytes, record: EngineRecord, library: Library, gpu: Gpu) -> str:
    """Say why the engine must not be run here; empty if it may."""
    source = path.with_name(record.source)
    if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
        return f"is not the engine that {sidecar_path(path).name} describes, or it was damaged"
    if source.is_file() and graph_digest(source) != record.onnx_sha256:
        return f"was built from another {record.source} than the one beside it"
    if not _fits_version(record, library):
        return f"was built by {record.runtime} {record.version}, and {library.name} {library.version} is installed"
    if not fits_chip(record, gpu):
        chips = ", ".join(record.compute_capabilities)
        return f"was built for compute capability {chips}, and {gpu.name} has {gpu.compute_capability}"
    if record.runtime == "tensorrt" and record.gpu != gpu.name and not record.hardware_compatible:
        return f"was built by timing kernels on {record.gpu}, and here is {gpu.name}"
    return ""


def _fits_version(record: EngineRecord, library: Library) -> bool:
    if record.runtime != library.name:
        return False
    if not record.version_compatible:
        return record.version == library.version
    built, installed = (_numbers(version) for version in (record.version, library.version))
    return built[0] == installed[0] and built <= installed


def fits_chip(record: EngineRecord, gpu: Gpu) -> bool:
    """Whether the engine was built for such a GPU."""
    if record.hardware_compatible and _numbers(gpu.compute_capability) >= _AMPERE:
        return True
    return gpu.compute_capability in record.compute_capabilities


def _numbers(version: str) -> tuple[int, ...]:
    """`10.14.1.48.post1` -> (10, 14, 1, 48, 1)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
