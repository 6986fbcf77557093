"""Engine files and their descriptions: written, read back, refused where they do not fit."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from mineral_batch import BackendError
from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt.plan import read_record, sidecar_path, write_engine
from mineral_batch.model.onnx_file import graph_digest

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch import ModelContract

from .conftest import PLAN, Machine, record, refused


def test_a_record_is_read_back_as_it_was_written(engine: Path, contract: ModelContract) -> None:
    assert read_record(engine) == record(contract)
    assert engine.read_bytes() == PLAN, "plain plan bytes, which trtexec and Triton load"


def test_an_engine_that_cannot_be_described_is_not_written(tmp_path: Path, contract: ModelContract) -> None:
    path = tmp_path / "model.plan"
    sidecar_path(path).mkdir()
    with pytest.raises(BackendError, match="cannot write the engine"):
        write_engine(path, PLAN, record(contract))
    assert not [found for found in tmp_path.iterdir() if found.is_file()]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "10.14.0.1"}, "was built by tensorrt 10.14.0.1, and tensorrt 10.13.3.9 is installed"),
        ({"compute_capabilities": ("9.0", "12.0")}, "compute capability 9.0, 12.0, and NVIDIA L4 has 8.9"),
        ({"gpu": "NVIDIA L40S"}, "was built by timing kernels on NVIDIA L40S, and here is NVIDIA L4"),
        ({"engine_sha256": "1" * 64}, "is not the engine that model.plan.json describes"),
    ],
)
def test_a_foreign_engine_is_refused_with_the_command_that_builds_it(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any], reason: str
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    message = refused(engine)
    assert reason in message
    assert message.endswith("build it again: mineral-export trt model.onnx -o model.plan")
    assert (machine.log, machine.tensorrt.plans) == ([], []), "nothing was loaded"


@pytest.mark.parametrize(
    "changes",
    [
        {"compute_capabilities": ("8.0",), "gpu": "NVIDIA A100", "hardware_compatible": True},
        {"version": "10.12.0.1", "version_compatible": True},
        {"version": "10.12.0.1.post1", "version_compatible": True},
    ],
)
def test_a_compatible_engine_is_taken(
    machine: Machine, engine: Path, contract: ModelContract, changes: dict[str, Any]
) -> None:
    write_engine(engine, PLAN, record(contract, **changes))
    machine.open(engine).close()


def test_an_engine_older_than_the_model_beside_it_is_refused(
    machine: Machine, engine: Path, contract: ModelContract, model_path: Path
) -> None:
    source = engine.with_name("model.onnx")
    source.write_bytes(model_path.read_bytes())
    assert "built from another model.onnx" in refused(engine)
    write_engine(engine, PLAN, record(contract, onnx_sha256=graph_digest(source)))
    machine.open(engine).close()


@pytest.mark.parametrize("damage", ["", "{}", '{"schema_version": 9}', "[1]", "\0"])
def test_an_engine_without_a_whole_description_is_refused(machine: Machine, engine: Path, damage: str) -> None:
    sidecar_path(engine).write_text(damage)
    assert "mineral-export trt" in refused(engine)
    sidecar_path(engine).unlink()
    assert "has no description model.plan.json" in refused(engine)


def test_a_batch_outside_the_profile_and_another_precision_are_refused(machine: Machine, engine: Path) -> None:
    assert "takes 1 to 8 images at once, not 9" in refused(engine, batch_size=9)
    assert "mineral-export fp16" in refused(engine, precision="float32")


def test_a_plan_needs_no_backend_by_name(machine: Machine, engine: Path) -> None:
    with closing(open_backend(engine)) as backend:
        assert backend.name == "tensorrt"
