"""The ways to run a model predict the same images, and the same probabilities."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from mineral_batch.cuda import probe
from mineral_batch.errors import BackendError, DataError
from mineral_batch.model.onnx_file import read_contract
from mineral_bench.baselines.pytorch import torch_device
from mineral_bench.baselines.runtimes import OnnxRuntimeBaseline
from mineral_bench.cli import main
from mineral_bench.comparison import Comparison
from mineral_bench.measure import Plan, Rounds
from mineral_bench.studies import peers
from mineral_bench.subject import Subject, find_subject

if TYPE_CHECKING:
    from pathlib import Path

SHORT = Plan(least=2, most=2, seconds=0, warm_up=1)


def test_ways_with_the_same_answers_and_those_that_are_not_here(model_path: Path, photos: Path) -> None:
    paths = peers.photographs([photos], read_contract(model_path).input, 5)
    options = peers.PeerOptions(
        backends=("onnx-cpu", "abacus"), also=(str(model_path), f"{model_path}@openvino", "absent.onnx@onnx-cpu")
    )
    found = peers.measure(Subject(model_path), paths, options, SHORT)
    compared = found.comparison
    assert {peers.ONNX, "mineral-batch, onnx-cpu"} <= set(compared.rounds.seconds)
    assert "no engine is called" in compared.absent["mineral-batch, abacus"]
    assert compared.differences["mineral-batch, onnx-cpu"] < 1e-6
    assert compared.differences["mineral-batch, onnx-cpu, tiny.onnx"] < 1e-6
    assert "mineral-batch, openvino, tiny.onnx" in {**compared.rounds.seconds, **compared.absent}
    assert "absent.onnx" in compared.absent["mineral-batch, onnx-cpu, absent.onnx"]
    assert (compared.images, len(paths)) == (5, 5)
    shown = peers.table(found, "Title").markdown()
    assert "| mineral-batch, onnx-cpu | CPU, float32 |" in shown
    assert "Not here: mineral-batch, abacus" in shown
    assert peers.figures(found)["computes_on"].keys() == compared.rounds.seconds.keys()


@pytest.mark.slow
def test_torchs_ways_give_the_same_answers(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="torch's ways need torch")
    pytest.importorskip("onnxscript", reason="the export needs onnxscript")
    subject = find_subject(_checkpoint(tmp_path / "checkpoint"), None, tmp_path)
    paths = peers.photographs([photos], read_contract(subject.model).input, 6)
    options = peers.PeerOptions(batch=4, backends=("onnx-cpu",), workers=0)
    found = peers.measure(subject, paths, options, SHORT)
    differences = found.comparison.differences
    assert list(found.comparison.rounds.seconds)[:3] == [peers.EAGER, peers.TIMM, peers.ONNX]
    assert all(differences[name] < 1e-4 for name in (peers.ONNX, "mineral-batch, onnx-cpu"))
    # timm resizes through torchvision or Pillow, whose rounding may differ.
    assert differences[peers.TIMM] < 0.02
    assert found.computes_on[peers.EAGER] == found.computes_on[peers.TIMM]


def _checkpoint(folder: Path) -> Path:
    from mineral_batch.model.contract import ModelContract
    from mineral_train.model.network import ModelConfig, build_model, input_spec
    from mineral_train.training.checkpoint import save_checkpoint

    config = ModelConfig("test_vit", image_size=64, width=32, heads=2, ffn=48, labels=("agate", "gold"))
    contract = ModelContract(("agate", "gold"), (0.5, 0.5), input_spec(config))
    save_checkpoint(folder, build_model(config, seed=1), contract)
    return folder


def test_what_the_seconds_do_not_include_is_said_at_the_start(model_path: Path, photos: Path) -> None:
    words = ["peers", model_path, photos, "--backend", "onnx-cpu", "--images", 2, "--seconds", 0]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    first, *others = done.stderr.splitlines()
    assert first == "At most 0 s of measuring, after exporting the model and starting each program"
    assert f"Starting {peers.ONNX}" in others
    assert others[-1].endswith("ways in interleaved rounds, for at most 0 s")
    assert "- seconds in all: " in done.stdout


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"or a preset; presets are .*vit-b16-384"):
        find_subject(tmp_path / "absent", None, tmp_path)


def test_ratios_are_taken_within_rounds() -> None:
    noise = np.array([1.0, 5.0, 2.0, 3.0, 1.5, 4.0])
    times = {peers.ONNX: 4 * noise, "ours": noise}
    found = Comparison(Rounds(times, times, 1, True), 8, dict.fromkeys(times, 0.0), dict.fromkeys(times))
    shown = peers.table(peers.PeerComparison(found, dict.fromkeys(times, "an abacus")), "Title")
    rows = {row[0]: row[1:4:2] for row in shown.rows}
    assert rows == {peers.ONNX: ("an abacus", "1"), "ours": ("an abacus", "4.00 (4.00 to 4.00)")}
    assert shown.columns[1:4:2] == ["computes on", f"times {peers.ONNX}"]


# ---- with a simulated GPU ---------------------------------------------------------------------------------------

GPUS = [probe.Gpu(0, "NVIDIA H200", "9.0", 1 << 37)]
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Runtime:
    """The module `onnxruntime` of its package for GPUs, whose sessions compute on the processor.

    Args:
        loads: whether CUDA's libraries are found once they are looked for, as in the packages of torch.
    """

    def __init__(self, *, loads: bool) -> None:
        self._loads, self._looked_for = loads, False

    def get_available_providers(self) -> list[str]:
        return ["AzureExecutionProvider", CUDA, CPU]

    def preload_dlls(self) -> None:
        self._looked_for = True

    def InferenceSession(self, path: str, providers: list[str]) -> Any:
        real = onnxruntime.InferenceSession(path, providers=[CPU])
        runs = [name for name in providers if name != CUDA or (self._loads and self._looked_for)]
        return SimpleNamespace(
            run=real.run,
            get_inputs=real.get_inputs,
            get_providers=lambda: runs,
            get_provider_options=lambda: {CUDA: {"use_tf32": "1"}, CPU: {}},
        )


@pytest.mark.parametrize(
    ("loads", "gpus", "words"), [(True, GPUS, f"{CUDA}, TF32 allowed"), (False, [], CPU), (False, None, CPU)]
)
def test_onnx_runtime_finds_cudas_libraries_and_says_where_it_ran(
    loads: bool,
    gpus: list[probe.Gpu] | None,
    words: str,
    model_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    play(monkeypatch, Runtime(loads=loads), gpus)
    peer = OnnxRuntimeBaseline(model_path)
    peer.prepare(peers.photographs([photos], peer.spec, 2))
    assert peer.from_files().shape == (2, 3)
    assert peer.describe() == words


def test_onnx_runtime_on_the_processor_beside_a_gpu_is_not_compared(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Runtime(loads=False), GPUS)
    with pytest.raises(BackendError, match="ran on the CPU although there is a GPU"):
        OnnxRuntimeBaseline(model_path).describe()


def play(monkeypatch: pytest.MonkeyPatch, runtime: Runtime, gpus: list[probe.Gpu] | None) -> None:
    def found() -> list[probe.Gpu]:
        if gpus is None:
            raise probe.DriverError("there is no driver")
        return gpus

    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(probe, "gpus", found)


def test_torch_may_use_tf32_where_ours_may_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="torch's ways need torch")
    before = torch.get_float32_matmul_precision()
    try:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert torch_device() == ("cpu", "CPU, float32")
        assert torch.get_float32_matmul_precision() == before
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
        assert torch_device() == ("cuda", "GPU (NVIDIA H200), TF32 allowed")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
