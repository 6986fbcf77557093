"""Several GPUs as one backend."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError, DataError, Failure, Predictor
from mineral_batch.cuda import probe
from mineral_batch.cuda.probe import Gpu
from mineral_batch.engines.device_group import DeviceGroup
from mineral_batch.engines.registry import open_backend
from mineral_batch.results import run as runs

from .conftest import H200, images

if TYPE_CHECKING:
    from pathlib import Path

    from ...fakes.onnxruntime import Runtime


def test_two_gpus_share_a_run_and_the_results_keep_their_order(model_path: Path, runtime: Runtime, album: Path) -> None:
    (album / "05.png").write_bytes(b"not a picture")
    before = set(threading.enumerate())
    with Predictor(model_path, backend="onnx-cpu") as alone:
        reference = list(alone.predict([album]))
    with Predictor(model_path, backend="onnx-cuda", devices=[0, 1], batch_size=2) as predictor:
        assert predictor.device == "GPU 0 (NVIDIA H200), TF32 allowed and GPU 1 (NVIDIA H200), TF32 allowed"
        results = [list(predictor.predict([album])) for _ in range(2)][-1]
    assert [len(threads) for threads in runtime.threads.values()] == [1, 1]  # a CUDA graph belongs to a thread
    assert not set(threading.enumerate()) - before
    assert [result.path for result in results] == [result.path for result in reference]
    for one, other in zip(results, reference, strict=True):
        if isinstance(one, Failure) or isinstance(other, Failure):
            assert one == other
        else:
            np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
    assert sorted({index for _, _, index in runtime.of("allocate")}) == [0, 1]


def test_a_device_that_does_not_open_closes_the_others(model_path: Path, runtime: Runtime) -> None:
    with pytest.raises(BackendError, match="there is no GPU 7, only 0, 1") as caught:
        open_backend(model_path, "onnx-tensorrt", devices=[0, 7])
    assert len(runtime.of("session")) == 1
    assert not runtime.alive
    assert not runtime.cuda.forbidden
    assert caught.value.__traceback__ is not None


def test_a_group_of_two_kinds_of_gpu_names_both(
    model_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "gpus", lambda: [H200[0], Gpu(1, "NVIDIA L4", "8.9", 24 << 30)])
    versions = {open_backend(model_path, "onnx-cuda", devices=order).version for order in ([0, 1], [1, 0])}
    (version,) = versions
    assert "H200 (compute capability 9.0)" in version
    assert "L4 (compute capability 8.9)" in version


def test_the_devices_of_a_group_take_turns_and_close_whatever_happens(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    assert isinstance(group, DeviceGroup)
    assert group.workers == 4
    assert group.version == "ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of 4"
    before = runtime.runs.copy()
    for _ in range(2):
        group.infer(images(4))
    assert sorted((runtime.runs - before).values()) == [1, 1], "each did one of the two"
    assert [len(threads) for threads in runtime.threads.values()] == [1, 1]
    runtime.fits, runtime.out_of_memory = 0, "CUDA failure 700: an illegal memory access"
    with pytest.raises(BackendError):
        group.infer(images(1))
    group.close()
    assert len(runtime.alive) == 1, "that of the GPU which failed"


def test_a_run_is_not_resumed_on_another_gpu(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        runs.run(predictor, [album], tmp_path / "out")
    with Predictor(model_path, backend="onnx-cuda", batch_size=4, devices=[1]) as same_kind:
        assert runs.run(same_kind, [album], tmp_path / "out").reused == 11
    with (
        Predictor(model_path, backend="onnx-cuda", batch_size=2) as other,
        pytest.raises(DataError, match=r"engine was .*batches of 4, is .*batches of 2"),
    ):
        runs.run(other, [album], tmp_path / "out")
    monkeypatch.setattr(probe, "gpus", lambda: [Gpu(0, "NVIDIA L4", "8.9", 1)])
    with (
        Predictor(model_path, backend="onnx-cuda", batch_size=4) as other,
        pytest.raises(DataError, match=r"engine was .*H200 \(compute capability 9.0\).*, is .*L4 \(compute capab"),
    ):
        runs.run(other, [album], tmp_path / "out")
