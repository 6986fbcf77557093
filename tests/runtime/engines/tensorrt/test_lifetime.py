"""What the TensorRT engine holds on the GPU is released, in the right order, whatever fails."""

from __future__ import annotations

import gc
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.engines.registry import open_backend

from ....fakes.tensorrt import ExecutionContext

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch import ModelContract

from .conftest import Machine, expected, images, refused


def test_closing_gives_everything_back_and_graphs_before_their_memory(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    machine.log.clear()
    backend.close()
    backend.close()
    lanes = ["wait", "destroy graph", "free", "free", "destroy stream"] * backend.workers
    assert machine.log[: len(lanes)] == lanes
    machine.require_given_back()


def test_closing_from_another_thread_gives_the_context_back_too(machine: Machine, engine: Path) -> None:
    backend = machine.open(engine)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(backend.close).result()
        assert pool.submit(lambda: machine.stack).result() == []
    machine.require_given_back()


def test_closing_waits_for_who_computes_and_refuses_who_comes_later(
    machine: Machine, engine: Path, contract: ModelContract
) -> None:
    backend, pixels = machine.open(engine), images(4, contract)
    inside, leave = threading.Event(), threading.Event()
    compute = machine.tensorrt.compute

    def slow(batch: np.ndarray) -> np.ndarray:
        inside.set()
        assert leave.wait(120)
        return compute(batch)

    machine.tensorrt.compute = slow
    with ThreadPoolExecutor(2) as pool:
        answer = pool.submit(backend.infer, pixels)
        assert inside.wait(120)
        closing = pool.submit(backend.close)
        leave.set()
        closing.result()
        np.testing.assert_allclose(answer.result(), expected(pixels, 5), rtol=1e-6)
    with pytest.raises(BackendError, match="the engine is closed"):
        backend.infer(pixels)


@pytest.mark.parametrize("function", ["cuStreamSynchronize", "cuGraphExecDestroy", "cuMemFree_v2"])
def test_a_lost_gpu_is_told_and_closing_goes_on_and_hides_nothing(
    machine: Machine, engine: Path, contract: ModelContract, function: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is called after an illegal access answers with that error again."""
    backend = machine.open(engine)
    machine.errors.update({"cuMemcpyHtoDAsync_v2": 700, function: 700})
    with pytest.raises(BackendError, match="CUDA error 700"):
        backend.infer(images(4, contract))
    with caplog.at_level(logging.WARNING, logger="mineral_batch"):
        backend.close()
    assert len(caplog.records) == backend.workers
    assert "closing the engine" in caplog.text
    assert machine.log.count("destroy stream") >= backend.workers
    for forget in (machine.memory, machine.executables, *machine.streams.values()):
        forget.clear()  # they went with the GPU


def test_the_reason_is_told_whoever_opened_an_engine_before(machine: Machine, engine: Path) -> None:
    """TensorRT logs to the first logger that it was given in the process."""
    machine.open(engine).close()
    machine.tensorrt.loads = False
    assert "does not load the engine: no luck; build it again" in refused(engine)
    machine.tensorrt.loads, machine.tensorrt.starts = True, False
    assert "does not start: CUDA initialization failure with error: 35" in refused(engine)


def test_the_threads_own_context_is_current_again_after_closing(machine: Machine, engine: Path) -> None:
    machine.stack.append("torch's, on another GPU")
    machine.open(engine).close()
    assert (machine.stack.pop(), machine.stack) == ("torch's, on another GPU", [])


def test_a_gpu_with_too_little_memory_for_the_second_lane_keeps_nothing(machine: Machine, engine: Path) -> None:
    machine.tensorrt.most_contexts = 1
    assert "choose a smaller --batch-size" in refused(engine)
    machine.require_given_back()


def test_page_locked_memory_that_is_not_to_be_had_is_one_line(machine: Machine, engine: Path) -> None:
    machine.errors["cuMemHostAlloc"] = 2
    with pytest.raises(BackendError) as caught:
        open_backend(engine, "tensorrt")
    assert str(caught.value).startswith("tensorrt does not open on GPU 0 (NVIDIA L4): CUDA ")
    contexts = [one for one in gc.get_objects() if type(one) is ExecutionContext]
    assert not contexts, "the error keeps one alive, whose memory is in the GPU's context"
    machine.require_given_back()


def test_an_engine_that_does_not_load_leaves_nothing_behind(machine: Machine, engine: Path) -> None:
    machine.tensorrt.loads = False
    assert "no luck; build it again: mineral-export trt" in refused(engine)
    machine.require_given_back()


def test_a_tensorrt_that_does_not_start_is_one_line(machine: Machine, engine: Path) -> None:
    machine.tensorrt.starts = False
    message = refused(engine)
    assert "does not start: CUDA initialization failure with error: 35; see whether the NVIDIA driver" in message
