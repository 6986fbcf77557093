"""mineral-export trt: profiles, progress, interruption, and what cannot be built."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto
from PIL import Image as PILImage

import mineral_batch.cli
from mineral_batch.engines.tensorrt import build as tensorrt_build
from mineral_batch.engines.tensorrt.options import Options
from mineral_batch.engines.tensorrt.plan import Profile, sidecar_path
from mineral_batch.model.onnx_file import read_contract, write_contract
from mineral_batch.system import pip_install
from mineral_export.tensorrt import export_engine

from .graphs import (
    LABELS,
    ONE_CHIP,
    SIDE,
    built,
    refused,
    run,
)

tensorrt_rtx = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has wheels for Linux and Windows on x86-64")


@pytest.mark.parametrize(
    ("words", "profile"),
    [
        ((), Profile(1, 64, 64)),
        (("--batch", 4), Profile(4, 4, 4)),
        (("--min", 2, "--opt", 3, "--max", 5), Profile(2, 3, 5)),
        (("--max", 8), Profile(1, 8, 8)),
        (("--min", 100), Profile(100, 100, 100)),
    ],
)
def test_the_profile_is_the_one_asked_for(
    product: Path, plan: Path, words: tuple[object, ...], profile: Profile
) -> None:
    record = built(product, "-o", plan, *ONE_CHIP, *words)
    assert record.profile == profile
    assert record.inputs == {"pixels": "uint8 (-1, 32, 32, 3)"}


def test_a_fixed_batch_and_a_range_are_not_given_together(product: Path) -> None:
    result = run(product, "--batch", 4, "--max", 8)
    assert result.exit_code == 2
    assert "leave out --min, --opt and --max" in result.output
    assert "1 <= smallest <= optimum" in refused(product, "--opt", 9, "--max", 8, *ONE_CHIP)


def test_the_description_is_json_and_the_plan_what_tensorrt_wrote(
    product: Path, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[bytes] = []
    original = tensorrt_build.Network.build

    def build(self: Any, *given: Any) -> Any:
        made = original(self, *given)
        written.append(made.plan)
        return made

    monkeypatch.setattr(tensorrt_build.Network, "build", build)
    built(product, "-o", plan, *ONE_CHIP)
    assert plan.read_bytes() == written[0], "nothing in front of it, so that Triton loads it"
    told = json.loads(sidecar_path(plan).read_text("utf-8"))
    assert told["contract"]["labels"] == [*LABELS]
    assert told["products"] == {"float16": 1}


def test_progress_is_told_step_by_step(product: Path, plan: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    options = Options(Profile(1, 2, 4), ("8.9",))
    export_engine(product, plan, options, progress=lambda *step: seen.append(step))
    phases = {phase for phase, _, _ in seen}
    assert phases
    for phase in phases:
        steps = [(step, steps) for name, step, steps in seen if name == phase]
        assert steps[0][0] == 0
        assert steps == sorted(steps)
        assert steps[-1] == (steps[-1][1], steps[-1][1]), "to the end"


def test_ctrl_c_ends_a_build_and_writes_nothing(product: Path, plan: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def interrupt(phase: str, step: int, steps: int) -> None:
        seen.append(step)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            export_engine(product, plan, Options(Profile(1, 2, 4), ("8.9",)), progress=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen
    assert not plan.exists()
    assert capfd.readouterr().err == "", "no trace of an exception inside of TensorRT"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--compute-capability", "9.0"), "has no target for compute capability 9.0; it has 7.5, 8.0, 8.6, 8.9, 12.0"),
        ((*ONE_CHIP, "--hardware-compatible"), "name every chip that the engine is for with --compute-capability"),
        ((*ONE_CHIP, "--version-compatible"), "leave out --version-compatible"),
        ((*ONE_CHIP, "--timing-cache", "timings"), "times no kernels while it builds: leave out --timing-cache"),
        ((*ONE_CHIP, "-o", "model.onnx"), "end it in .plan or .engine"),
        ((*ONE_CHIP, "-o", "nowhere/model.plan"), "no such folder: nowhere"),
        ((*ONE_CHIP, "-o", "folder.plan"), "folder.plan is a folder: name a file with -o"),
        ((*ONE_CHIP, "-o", "described.plan"), "described.plan.json is a folder"),
    ],
)
def test_what_tensorrt_for_rtx_does_not_do_is_refused_at_once(
    product: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(product.parent)
    for folder in ("folder.plan", "described.plan.json"):
        Path(folder).mkdir()
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)
    assert reason in refused(product, *words)
    assert [path.name for path in product.parent.iterdir() if path.is_file()] == ["model.onnx"]


def test_a_graph_that_tensorrt_does_not_take_is_told_in_its_words(product: Path, plan: Path) -> None:
    contract, model = read_contract(product), onnx.load(product)
    model.graph.node[-1].op_type = "NonZero"
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(model, product)
    write_contract(product, contract)
    assert "Error: tensorrt-rtx " in refused(product, "-o", plan, *ONE_CHIP, "--precision", "as-is")
    assert not plan.exists()


def test_a_file_without_a_contract_is_refused(tmp_path: Path) -> None:
    assert "there is no model file" in refused(tmp_path / "none.onnx", *ONE_CHIP)
    (tmp_path / "other.onnx").write_bytes(b"\x08\x0a")
    assert "contract" in refused(tmp_path / "other.onnx", *ONE_CHIP)


def test_without_a_gpu_the_chip_must_be_named(product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mineral_export.precision.fp16.to_fp16", None)  # told before minutes of work
    message = refused(product)
    assert "no NVIDIA driver" in message
    assert "--compute-capability 8.9" in message


def test_tensorrt_itself_needs_a_gpu(product: Path, datacenter: ModuleType) -> None:
    message = refused(product)
    assert "tensorrt builds an engine by timing kernels on the GPU, and here is no NVIDIA driver" in message
    assert "--runtime tensorrt-rtx" in message


@pytest.mark.parametrize("wanted", [(), ("--runtime", "tensorrt"), ("--runtime", "tensorrt-rtx")])
def test_without_tensorrt_the_packages_are_named(
    product: Path, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    message = refused(product, *ONE_CHIP, *wanted)
    assert f"{wanted[1] if wanted else 'TensorRT'} is not installed: {pip_install('trt-rtx')}" in message
    assert pip_install("trt") in message


@pytest.mark.parametrize("name", ["model.onnx", "model.plan"])
def test_predict_without_a_gpu_is_one_line(product: Path, plan: Path, name: str) -> None:
    built(product, "-o", plan, *ONE_CHIP)
    PILImage.new("RGB", (SIDE, SIDE)).save(plan.with_name("a.png"))
    words = ["predict", str(plan.parent), "--model", str(plan.with_name(name)), "--backend", "tensorrt"]
    result = CliRunner().invoke(mineral_batch.cli.main, [*words, "-o", str(plan.with_name("out.csv"))])
    assert result.exit_code == 1
    assert result.output == (
        "Error: tensorrt needs an NVIDIA GPU: no NVIDIA driver (libcuda.so.1 does not load); "
        "install the NVIDIA driver, or use a machine that has one\n"
    )
