"""A GPU that fails: nothing on it is touched again; one that is well goes on."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.cuda.probe import DriverError
from mineral_batch.engines.registry import open_backend

from .conftest import expected, images

if TYPE_CHECKING:
    from pathlib import Path

    from ...fakes.onnxruntime import Runtime

#: What a GPU answers that is lost.
BROKEN = {"cuStreamSynchronize": 700, "cuMemcpyHtoDAsync_v2": 700, "cuMemcpyDtoDAsync_v2": 700}
# What ends the use of a GPU, and whether its words say so or only the GPU does.
LASTING = [
    ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
    ("CUDA failure 214: uncorrectable ECC error encountered", False),
    ("CUDA failure 220: uncorrectable NVLink error detected during the execution", False),
    ("CUDA failure 999: unknown error", False),
    ("CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR", True),
    ("TensorRT EP execution context enqueue failed.", True),
]
# What the GPU is none the worse for.
PASSING = [
    "a wrong argument",
    "CUDA failure 900: operation not permitted when stream is capturing",
    "CUDA failure 209: no kernel image is available for execution on the device",
    "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version",
    "CUDA failure 803: system has unsupported display driver / cuda driver combination",
    "CUDNN failure 3000: CUDNN_STATUS_NOT_SUPPORTED",
    "CUBLAS failure 13: CUBLAS_STATUS_EXECUTION_FAILED",
    "TensorRT EP execution context enqueue failed.",
]


def test_a_session_that_does_not_open_is_gone_although_its_error_is_kept(model_path: Path, runtime: Runtime) -> None:
    runtime.fits, runtime.out_of_memory = 0, "an unknown kernel"
    with pytest.raises(BackendError, match="an unknown kernel") as caught:
        open_backend(model_path, "onnx-cuda")
    assert len(runtime.of("session")) == 1
    assert not runtime.alive
    assert not runtime.cuda.forbidden
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize(("words", "is_seen_on_the_gpu"), LASTING)
def test_after_a_failure_of_the_gpu_nothing_on_it_is_touched_again(
    model_path: Path, runtime: Runtime, words: str, is_seen_on_the_gpu: bool
) -> None:
    def fail() -> None:
        runtime.cuda.errors.update(BROKEN if is_seen_on_the_gpu else {})
        raise RuntimeError(words)

    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.computing = fail
    told = f"onnx-cuda failed on a batch of 2: {words}; start the command again: this process cannot use the GPU any"
    with pytest.raises(BackendError, match=told):
        backend.infer(images(2))
    done = runtime.calls.copy()
    freed = runtime.cuda.log.count("free")
    with pytest.raises(BackendError, match=told):
        backend.infer(images(2))
    backend.close()
    del backend
    gc.collect()
    assert (runtime.calls, runtime.cuda.log.count("free")) == (done, freed), "no run, nothing freed"
    assert len(runtime.alive) == 1, "its destructor would end the process"


@pytest.mark.parametrize(("words", "is_seen_on_the_gpu"), LASTING)
def test_a_gpu_that_fails_at_the_first_batch_is_said_to(
    model_path: Path, runtime: Runtime, words: str, is_seen_on_the_gpu: bool
) -> None:
    runtime.cuda.errors.update(BROKEN if is_seen_on_the_gpu else {})
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"{words}; start the command again"):
        open_backend(model_path, "onnx-cuda")
    gc.collect()
    assert len(runtime.alive) == 1, "its destructor would end the process"


@pytest.mark.parametrize("words", PASSING)
def test_to_start_again_is_not_advised_where_it_does_not_help(model_path: Path, runtime: Runtime, words: str) -> None:
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"{words}$") as caught:
        open_backend(model_path, "onnx-cuda")
    assert not runtime.alive, "though its error is kept"
    assert not runtime.cuda.forbidden
    assert caught.value.__cause__ is not None


def test_a_copy_that_is_refused_by_a_healthy_gpu_is_not_the_end(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.cuda.errors["cuMemcpyHtoDAsync_v2"] = 1
    with pytest.raises(BackendError, match=r"failed on a batch of 1: CUDA error 1 \(CUDA_ERROR_INVALID_VALUE.*\)$"):
        backend.infer(images(1))
    runtime.cuda.errors.clear()
    np.testing.assert_allclose(backend.infer(images(2)), expected(model_path, images(2)), rtol=1e-6)
    backend.close()
    assert (runtime.cuda.log.count("free"), len(runtime.alive)) == (2, 0)


def test_a_failed_copy_ends_the_use_of_the_gpu(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.cuda.errors["cuMemcpyHtoDAsync_v2"] = 719
    with pytest.raises(BackendError, match=r"failed on a batch of 1: CUDA error 719 \(.*\); start the command again"):
        backend.infer(images(1))
    backend.close()
    assert len(runtime.alive) == 1
    assert "free" not in runtime.cuda.log


def test_a_gpu_that_another_library_broke_is_left_as_it_is(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.cuda.errors.update(BROKEN)
    backend.close()
    del backend
    gc.collect()
    assert len(runtime.alive) == 1
    assert "free" not in runtime.cuda.log


def test_a_broken_gpu_that_says_it_is_short_of_memory_gets_no_new_session(model_path: Path, runtime: Runtime) -> None:
    def fail() -> None:
        runtime.cuda.errors.update(BROKEN)
        raise RuntimeError("CUDA failure 2: out of memory")

    backend = open_backend(model_path, "onnx-cuda", batch_size=4)
    runtime.computing = fail
    for _ in range(2):
        with pytest.raises(BackendError, match="NVIDIA H200 fails: start the command again"):
            backend.infer(images(4))
    assert len(runtime.of("session")) == 1
    backend.close()
    assert len(runtime.alive) == 1
    assert "free" not in runtime.cuda.log


@pytest.mark.parametrize("words", PASSING)
def test_a_failed_run_of_a_healthy_gpu_leaves_the_session_in_use(
    model_path: Path, runtime: Runtime, words: str
) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.fits, runtime.out_of_memory = 0, words
    with pytest.raises(BackendError, match=f"batch of 2: {words}$") as caught:
        backend.infer(images(2))
    runtime.fits = 2
    np.testing.assert_allclose(backend.infer(images(2)), expected(model_path, images(2)), rtol=1e-6)
    assert len(runtime.of("session")) == 1
    backend.close()
    assert not runtime.alive, "though its error is kept"
    assert not runtime.cuda.forbidden
    assert caught.value.__cause__ is not None


def test_the_source_file_that_onnx_runtime_names_is_left_out(model_path: Path, runtime: Runtime) -> None:
    runtime.fits = 0
    runtime.out_of_memory = "/src/core/x.cc:63 static T f(const U&) [ONNXRuntimeError] : 1 : FAIL : no such kernel\n"
    with pytest.raises(BackendError, match=r"batch of \d+: \[ONNXRuntimeError\] : 1 : FAIL : no such kernel$"):
        open_backend(model_path, "onnx-cuda")


def test_what_fails_while_it_is_closed_keeps_nothing_else_on_the_gpu(model_path: Path, runtime: Runtime) -> None:
    backend = open_backend(model_path, "onnx-cuda", batch_size=2)
    runtime.cuda.errors["cuStreamDestroy_v2"] = 999
    with pytest.raises(DriverError, match="CUDA error 999"):
        backend.close()
    assert (runtime.cuda.log.count("free"), len(runtime.alive)) == (2, 0)
