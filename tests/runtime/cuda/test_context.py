"""The two implementations of `mineral_batch.cuda.interface` on the same fake GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mineral_batch import BackendError
from mineral_batch.cuda.core import CoreContext
from mineral_batch.cuda.opening import open_context
from mineral_batch.cuda.probe import DriverError, Gpu

from ...fakes.cuda import Cuda

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GPU = Gpu(0, "NVIDIA L4", "8.9", 24 << 30)
SOURCE, PTX = 'extern "C" __global__ void add(int a) {}', ".visible .entry add()"


@pytest.fixture(params=["cuda-core", "pycuda"])
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    cuda = Cuda()
    cuda.install(monkeypatch, pycuda=request.param == "pycuda")
    assert open_context(GPU).package == request.param
    cuda.streams.clear()
    yield cuda
    cuda.require_given_back()


def test_bytes_go_to_the_gpu_and_come_back(cuda: Cuda) -> None:
    context = open_context(GPU)
    with context.current():
        stream, memory, pinned = context.stream(), context.allocate(6), context.pinned(6)
        assert cuda.memory[memory.address].tolist() == [0] * 6
        assert pinned.array.tolist() == [0] * 6
        context.to_gpu(memory, np.arange(4, dtype=np.uint8), stream)  # a part of it
        context.from_gpu(pinned.array, memory, stream)
        stream.synchronize()
        assert pinned.array.tolist() == [0, 1, 2, 3, 0, 0]
        memory.close()
        pinned.close()
        stream.close()
    context.close()
    assert (cuda.pinned, cuda.streams) == ({}, {})


def test_a_graph_repeats_what_was_enqueued(cuda: Cuda) -> None:
    context = open_context(GPU)
    with context.current():
        stream, memory, pinned = context.stream(), context.allocate(2), context.pinned(2)
        graph = context.capture(stream, lambda: context.from_gpu(pinned.array, memory, stream))
        for value in (5, 6):
            context.to_gpu(memory, np.full(2, value, np.uint8), stream)
            graph.launch()
            stream.synchronize()
            assert pinned.array.tolist() == [value, value]
        for one in (graph, memory, pinned, stream):
            one.close()
    context.close()


def test_work_that_cannot_be_captured_leaves_the_stream_usable(cuda: Cuda) -> None:
    context = open_context(GPU)
    with context.current():
        stream = context.stream()
        for failure in (BackendError("this work allocates"), KeyboardInterrupt()):

            def work(failure: BaseException = failure) -> None:
                raise failure

            with pytest.raises(type(failure)):
                context.capture(stream, work)
        assert (cuda.capturing, cuda.graphs) == ({}, {})
        stream.synchronize()
        stream.close()
    context.close()


def test_the_previous_context_is_current_again(cuda: Cuda) -> None:
    context = open_context(GPU)
    cuda.stack.append("torch's, on another GPU")
    with context.current():
        assert cuda.stack[-1] != "torch's, on another GPU"
    assert cuda.stack == ["torch's, on another GPU"]
    cuda.stack.clear()
    context.close()


def test_a_failure_has_its_number(cuda: Cuda) -> None:
    context = open_context(GPU)
    with context.current():
        stream = context.stream()
    cuda.errors["cuStreamSynchronize"] = 700
    with pytest.raises(DriverError, match="CUDA error 700") as caught, context.current():
        stream.synchronize()
    assert caught.value.code == 700
    assert cuda.stack == []
    with context.current():
        stream.close()
    context.close()


def test_pycuda_without_cuda_core_has_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch, pycuda=True)
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    context = open_context(GPU)
    with context.current():
        stream = context.stream()
        with pytest.raises(DriverError, match=r"no CUDA graphs.*pip install .*\[gpu\]"):
            context.capture(stream, lambda: None)
        stream.close()


def test_without_either_package_the_command_that_installs_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pycuda", "pycuda.driver", "cuda.core"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendError, match=r"on GPU 0 \(NVIDIA L4\): cuda-core is not .*\[gpu\]"):
        open_context(GPU)


def test_a_pycuda_that_does_not_load_is_logged_and_not_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcurand.so.10: cannot open')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name)
    assert open_context(GPU).package == "cuda-core"
    assert [entry.getMessage() for entry in caplog.records] == [
        "pycuda does not load (libcurand.so.10: cannot open): using cuda-core instead"
    ]


@pytest.mark.parametrize("has_nvrtc", [True, False])
def test_a_kernel_is_compiled_by_nvrtc_or_where_that_is_missing_by_the_driver(
    monkeypatch: pytest.MonkeyPatch, has_nvrtc: bool
) -> None:
    cuda = Cuda()
    cuda.install(monkeypatch)
    cuda.has_nvrtc = has_nvrtc
    ran: list[Any] = []
    cuda.kernels["add"] = lambda threads, arguments: lambda: ran.append((threads, arguments))
    context = CoreContext(GPU)
    with context.current():
        stream, kernel = context.stream(), context.kernel(SOURCE, PTX, "add")
        kernel.launch(300, [np.int32(7)], stream)
        stream.synchronize()
        kernel.close()
        stream.close()
    context.close()
    assert cuda.compiled == [SOURCE if has_nvrtc else PTX]
    assert ran == [(512, (np.int32(7),))]
    cuda.require_given_back()
