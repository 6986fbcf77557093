"""Memory of the driver and who may touch the GPU while a CUDA graph is captured, on a GPU that only exists here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from mineral_batch.cuda.device import gate, page_locked

from ..cuda import Cuda

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    cuda = Cuda()
    cuda.install(monkeypatch)
    yield cuda
    cuda.require_given_back()


def test_page_locked_memory_is_zero_and_goes_with_its_last_view(cuda: Cuda) -> None:
    pixels = page_locked((2, 3), 0)
    view = pixels[1:]
    assert not pixels.any()
    del pixels
    assert len(cuda.pinned) == 1
    del view
    assert (cuda.pinned, cuda.retained) == ({}, [])


def test_memory_that_is_dropped_during_a_capture_is_freed_after_it(cuda: Cuda) -> None:
    """A garbage collector runs anywhere, also in the thread that captures."""
    pixels = [page_locked((2, 3), 0) for _ in range(3)]
    with gate.alone():
        pixels.pop()
        dropping = threading.Thread(target=pixels.pop)
        dropping.start()
        dropping.join()
        assert len(cuda.pinned) == 3, "nothing is freed, and nobody waits"
    assert len(cuda.pinned) == 1
    pixels.clear()
    assert cuda.pinned == {}
    with gate.alone():
        pass  # nobody is left inside


@pytest.mark.parametrize("function", ["cuCtxPushCurrent_v2", "cuDevicePrimaryCtxRelease_v2"])
def test_memory_of_a_gpu_that_was_lost_is_dropped_in_silence(cuda: Cuda, function: str) -> None:
    pixels = page_locked((2, 3), 0)
    cuda.errors[function] = 700
    assert len(cuda.pinned) == 1
    del pixels  # an exception in a finalizer would fail this test
    cuda.pinned.clear()
    cuda.retained.clear()
