"""A GPU short of memory: batches are halved, nothing is lost, and a run continues."""

from __future__ import annotations

import itertools
import json
import logging
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError, Predictor
from mineral_batch.engines.registry import open_backend
from mineral_batch.results import run as runs
from mineral_batch.results.attempt import RunSummary

from .conftest import expected, images

if TYPE_CHECKING:
    from pathlib import Path

    from ...fakes.onnxruntime import Runtime


@pytest.mark.parametrize(
    "words",
    [
        "Failed to allocate memory for requested buffer",
        "CUDA failure 2: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_out_of_memory_halves_the_batch_and_no_picture_is_lost(
    model_path: Path, runtime: Runtime, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    runtime.out_of_memory = words
    backend = open_backend(model_path, "onnx-cuda", batch_size=12)
    runtime.fits = 3
    pixels = images(12)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_allclose(backend.infer(pixels), expected(model_path, pixels), rtol=1e-6)
    assert [size for _, size in runtime.of("run")] == [12, 12, 6, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    assert backend.batch_size == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"GPU 0 is out of memory: continuing with batches of {batch}" for batch in (6, 3)]
    assert backend.version.endswith("batches of 3")
    assert len(runtime.alive) == 1
    assert not runtime.cuda.forbidden


def test_a_gpu_too_small_for_one_picture_is_an_error(model_path: Path, runtime: Runtime) -> None:
    runtime.fits = 0
    with pytest.raises(BackendError, match="too little free memory for one image") as caught:
        open_backend(model_path, "onnx-cuda", batch_size=2)
    assert not runtime.alive, "though its error is kept"
    assert not runtime.cuda.forbidden
    assert caught.value.__cause__ is not None


def test_another_failure_is_no_reason_to_halve(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.fits, runtime.out_of_memory = 0, "an illegal memory access was encountered\nat somewhere.cc:12"
    with pytest.raises(BackendError, match=r"batch of 2: an illegal memory access was encountered$"):
        backend.infer(images(2))
    assert [size for _, size in runtime.of("run")] == [2, 2]


def test_memory_that_is_short_from_the_start_is_found_when_the_model_is_opened(
    model_path: Path, runtime: Runtime
) -> None:
    runtime.fits = 3
    assert open_backend(model_path, "onnx-cuda", batch_size=12).batch_size == 3
    assert [size for _, size in runtime.of("run")] == [12, 6, 3]


def test_a_run_that_went_on_with_smaller_batches_says_so(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path
) -> None:
    def shrink_after_the_first_batch() -> None:
        if len(runtime.of("run")) == 2:
            runtime.fits = 2

    runtime.computing = shrink_after_the_first_batch
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").predicted == 11
        assert predictor.engine_version.endswith("batches of 2")
    told = made_with(tmp_path / "out")
    assert told["engine"].endswith("batches of 4")
    assert told["engine later"].endswith("batches of 2")
    runtime.fits = 4
    with Predictor(model_path, backend="onnx-cuda", batch_size=4) as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").reused == 11
    assert made_with(tmp_path / "out") == told, "as it was for some of the results"


@pytest.mark.parametrize("devices", [[0], [0, 1]])
def test_the_same_command_goes_on_with_a_run_however_much_memory_is_free(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path, devices: list[int]
) -> None:
    def part(enough: int, fits: int) -> RunSummary:
        runtime.fits = fits
        drawn = itertools.count()
        with Predictor(model_path, backend="onnx-cuda", batch_size=4, devices=devices) as predictor:
            return runs.run(predictor, [album], tmp_path / "out", stop=lambda: next(drawn) == enough)

    free = {2: 4, 4: 2, 6: 2, 8: 1, 10: 2, 11: 1 << 20}  # after so many pictures: what fits
    assert [part(*given).predicted for given in free.items()] == list(free)
    told = made_with(tmp_path / "out")
    version = "onnx-cuda, ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of "
    assert told["engine"] == f"{version}4"
    assert told["engine later"] == f"{version}2; {version}1", "each once"


def test_memory_that_is_short_when_the_model_is_opened_is_noted_beside_what_was_asked_for(
    model_path: Path, runtime: Runtime, album: Path, tmp_path: Path
) -> None:
    runtime.fits = 40
    with Predictor(model_path, backend="onnx-cuda") as predictor:
        assert runs.run(predictor, [album], tmp_path / "out").predicted == 11
        assert predictor.engine_version.endswith("batches of 32")
        assert predictor.engine_identity.endswith("batches of 64")
    told = made_with(tmp_path / "out")
    assert (told["engine"][-13:], told["engine later"][-13:]) == ("batches of 64", "batches of 32")


def test_a_group_is_known_by_what_was_asked_for_whichever_gpu_is_short(model_path: Path, runtime: Runtime) -> None:
    group = open_backend(model_path, "onnx-cuda", devices=[0, 1], batch_size=4)
    runtime.fits = 2
    group.infer(images(4))
    version = "ONNX Runtime 1.99.0, TF32 allowed, NVIDIA H200 (compute capability 9.0), batches of "
    assert group.version == f"{version}2 and {version}4"
    assert group.identity == f"{version}4"


def made_with(folder: Path) -> dict[str, str]:
    fingerprint: dict[str, str] = json.loads((folder / "run.json").read_text())["fingerprint"]
    return fingerprint
