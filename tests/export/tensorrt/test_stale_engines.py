"""A stale or foreign engine is refused with the command that rebuilds it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from mineral_batch.engines.registry import open_backend
from mineral_batch.engines.tensorrt.options import Options
from mineral_batch.engines.tensorrt.plan import Profile, read_record, sidecar_path
from mineral_batch.errors import BackendError
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_export.tensorrt import export_engine

from .graphs import (
    ONE_CHIP,
    SIDE,
    built,
)

if TYPE_CHECKING:
    from collections.abc import Callable

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


def opened(plan: Path) -> str:
    """Why the runtime refuses an engine, as one line."""
    with pytest.raises(BackendError) as caught:
        open_backend(plan, "tensorrt")
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def engine(product: Path, plan: Path, ada: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For this GPU; the tests are in its folder, as is one who types the command that rebuilds it."""
    monkeypatch.chdir(plan.parent)
    built(product.name, "-o", plan, *ONE_CHIP, "--batch", 2, "--force")  # it cannot be compared here
    assert "CUDA does not start on GPU 0" in opened(plan), "all that is missing to run it"
    return plan


def _another_graph(plan: Path) -> None:
    path = plan.with_suffix(".onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3 * SIDE**2, 3), np.float32), "weights"))
    onnx.save(model, path)


def _another_chip(plan: Path) -> None:
    built("model.onnx", "-o", plan, "--compute-capability", "12.0", "--batch", 2, "--force")


def _damage(plan: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-100])


def _another_release(plan: Path) -> None:
    told = json.loads(sidecar_path(plan).read_text())
    sidecar_path(plan).write_text(json.dumps(told | {"version": "1.0.0.1"}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_another_graph, "was built from another model.onnx than the one beside it"),
        (_another_chip, "was built for compute capability 12.0, and NVIDIA L4 has 8.9"),
        (_damage, "is not the engine that model.plan.json describes, or it was damaged"),
        (_another_release, "was built by tensorrt-rtx 1.0.0.1, and tensorrt-rtx 1."),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_and_the_command_named_builds_it_again(
    engine: Path, change: Callable[[Path], None], reason: str
) -> None:
    profile = read_record(engine).profile
    change(engine)
    message = opened(engine)
    assert reason in message
    command = shlex.split(message.partition("build it again: ")[2])
    assert command[:2] == ["mineral-export", "trt"]
    if change is _another_chip:  # it builds what was built; for this GPU it has another chip
        command[command.index("12.0")] = "8.9"
    built(*command[2:], "--force")
    assert "CUDA does not start on GPU 0" in opened(engine)
    assert read_record(engine).profile == profile


def test_other_thresholds_in_the_model_leave_the_engine_valid(engine: Path) -> None:
    source = engine.with_suffix(".onnx")
    write_contract(source, read_contract(source).with_thresholds([0.9] * 3))
    assert "CUDA does not start on GPU 0" in opened(engine)


def test_the_command_that_was_typed_is_the_one_that_is_named(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trt", str(product), "-o", str(plan), *ONE_CHIP, "--opt", "3"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mineral-export", *words])
    assert built(*words[1:3], plan, *words[4:]).rebuild == shlex.join(["mineral-export", *words])


def test_every_option_is_in_the_command_of_one_who_called_a_function(product: Path, plan: Path) -> None:
    options = Options(Profile(1, 2, 4), ("8.9", "12.0"), workspace=0.5)
    rebuild = export_engine(product, plan, options, precision="fp32").record.rebuild
    assert rebuild == (
        "mineral-export trt model.onnx -o model.plan --runtime tensorrt-rtx --min 1 --opt 2 --max 4 "
        "--compute-capability 8.9 --compute-capability 12.0 --workspace 0.5 --precision fp32"
    )
