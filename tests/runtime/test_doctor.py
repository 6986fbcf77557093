"""The doctor opens every engine for real, survives one that crashes, and names the command that mends."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from mineral_batch import Predictor, doctor
from mineral_batch.cli import main
from mineral_batch.cuda.probe import Gpu
from mineral_batch.doctor import EngineTrial, Machine, findings
from mineral_batch.engines.registry import BACKENDS

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("onnxruntime")

GPU = Gpu(0, "NVIDIA L4", "8.9", 24 << 30)
CODECS = dict.fromkeys(("jpg", "libjpeg_turbo", "zlib", "webp", "avif", "jpg_2000", "libtiff", "heif"), True)
HEALTHY = Machine(
    python="3.12.1",
    system="Linux",
    processor="a processor",
    cpu_count=8,
    cpu_features=("avx2",),
    packages={"onnxruntime": "1.32.0", "openvino": "2026.4.1"},
    codecs=CODECS,
    no_gpu="no NVIDIA driver",
)
CPU_ENGINES = [
    EngineTrial("onnx-cuda", works=False, reason="no GPU"),
    EngineTrial("openvino", works=True, device="CPU, float32", seconds=0.01),
    EngineTrial("onnx-cpu", works=True, device="CPU, float32", seconds=0.02),
]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


@pytest.fixture(scope="module")
def report(model_path: Path) -> Any:
    result = invoke("--json", "-m", model_path)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_every_engine_is_tried_and_one_answers(report: Any) -> None:
    engines = {engine["name"]: engine for engine in report["engines"]}
    assert list(engines) == list(BACKENDS)
    cpu = engines["onnx-cpu"]
    assert (cpu["works"], cpu["device"], cpu["difference"]) == (True, "CPU, float32", 0.0)
    assert cpu["seconds"] > 0
    for engine in engines.values():
        assert engine["works"] or len(engine["reason"].splitlines()) == 1


def test_openvino_is_compared_with_onnx_runtime(report: Any) -> None:
    pytest.importorskip("openvino")
    (engine,) = [engine for engine in report["engines"] if engine["name"] == "openvino"]
    assert engine["works"]
    assert 0 <= engine["difference"] < 0.02


def test_versions_and_codecs_are_those_in_use(report: Any) -> None:
    import numpy as np
    import PIL

    packages = report["machine"]["packages"]
    assert (packages["numpy"], packages["pillow"]) == (np.__version__, PIL.__version__)
    assert set(report["machine"]["codecs"]) == set(CODECS)


def test_the_text_has_a_line_for_each_engine(model_path: Path) -> None:
    result = invoke("-m", model_path)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    for name in BACKENDS:
        assert sum(line.startswith(f"{name} ") for line in lines) == 1
    assert any(line.startswith("onnx-cpu       yes  CPU, float32, ") for line in lines)
    (auto,) = [line for line in lines if line.startswith("auto ")]
    with Predictor(model_path) as predictor:
        assert auto.startswith(f"auto           {predictor.backend}, the engine that the model was measured with")


def test_without_a_starter_model_it_asks_for_a_model_after_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mineral_batch.cli.doctor as command

    monkeypatch.setattr(command, "starter_path", lambda: tmp_path / "starter.onnx")
    result = invoke()
    assert result.exit_code == 1
    assert "packages   " in result.stdout
    assert result.stderr.splitlines()[-1].endswith("name a model with --model")


@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_file_that_is_not_a_model_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content:
        path.write_bytes(content)
    result = invoke("-m", path)
    assert result.exit_code == 1
    assert ("no such model file" if content is None else "no engine works here") in result.stderr


def test_an_engine_that_crashes_or_hangs_is_a_finding(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another program in the place of Python: what `_try_engine` sees is a process that dies or does not end."""
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        engine, probabilities = doctor._try_engine("onnx-cpu", model_path)
    assert (engine.works, probabilities) == (False, [])
    assert "the process ended with code 1" in engine.reason
    monkeypatch.setattr(doctor, "_SECONDS_FOR_AN_ENGINE", 0.01)
    assert "no answer within" in doctor._try_engine("onnx-cpu", model_path)[0].reason


def fixes(machine: Machine, engines: list[EngineTrial] = CPU_ENGINES) -> list[str]:
    return [f"{finding.what} | {finding.fix}" for finding in findings(machine, engines)]


def test_a_healthy_machine_has_no_findings() -> None:
    assert fixes(HEALTHY) == []


def test_both_onnxruntimes_are_a_clash_solved_for_the_machine() -> None:
    both = replace(HEALTHY, packages={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    (cpu,) = fixes(both)
    (gpu,) = fixes(replace(both, gpus=(GPU,)))
    for said, extra in ((cpu, "cpu"), (gpu, "gpu")):
        assert "overwrite each other" in said
        assert "pip uninstall -y onnxruntime onnxruntime-gpu && " in said
        assert said.endswith(f"[{extra}]'")


def test_an_unused_gpu_is_a_finding() -> None:
    (said,) = fixes(replace(HEALTHY, gpus=(GPU,)))
    assert said.startswith("NVIDIA L4 is not used")
    assert said.endswith("[gpu]'")
    (libraries,) = fixes(replace(HEALTHY, gpus=(GPU,), packages={"onnxruntime-gpu": "1.31.1"}))
    assert libraries.endswith('"onnxruntime-gpu[cuda,cudnn]"')


def test_openvino_is_recommended_on_cpus_only() -> None:
    without = [engine for engine in CPU_ENGINES if engine.name != "openvino"]
    (said,) = fixes(replace(HEALTHY, cpu_features=("avx512_bf16",)), without)
    assert "twice as fast" in said
    assert said.endswith("pip install openvino")
    working = [EngineTrial("onnx-cuda", works=True, device="GPU 0")]
    assert fixes(replace(HEALTHY, gpus=(GPU,), packages={"onnxruntime-gpu": "1"}), working) == []


def test_no_engine_and_no_codec() -> None:
    said = fixes(
        replace(HEALTHY, codecs={**CODECS, "webp": False, "libjpeg_turbo": False, "heif": False}),
        [EngineTrial("onnx-cpu", False)],
    )
    assert any(line.startswith("no engine works") and "[cpu]'" in line for line in said)
    assert any("lacks webp |" in line for line in said)
    assert any("libjpeg-turbo" in line for line in said)
    assert any("HEIC" in line and line.endswith("[heif]'") for line in said)


def test_a_driver_without_a_gpu_is_a_finding() -> None:
    (said,) = fixes(replace(HEALTHY, driver="580.1", no_gpu="cuInit: 100"))
    assert "cuInit: 100" in said
