"""Page-locked arrays: zeroed, freed with their last view, in whichever thread and state that happens."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mineral_batch.cuda.capture_lock import capture_lock
from mineral_batch.cuda.pinned import host_buffer, pin, pinned_array
from mineral_batch.cuda.probe import DriverError, Gpu

if TYPE_CHECKING:
    from ...fakes.cuda import Cuda

GPU = Gpu(0, "NVIDIA L4", "8.9", 24 << 30)


def test_the_array_is_zero_and_goes_with_its_last_view(cuda: Cuda) -> None:
    pixels = pinned_array((2, 3, 4, 3), GPU)
    assert (pixels.shape, pixels.dtype, pixels.any()) == ((2, 3, 4, 3), np.uint8, False)
    view = pixels[1:].view(np.int8)
    del pixels
    assert len(cuda.pinned) == 1
    del view
    assert (cuda.pinned, cuda.streams) == ({}, {})


def test_it_is_freed_in_a_thread_without_a_context(cuda: Cuda) -> None:
    pixels = [pinned_array((2, 3), GPU)]
    dropping = threading.Thread(target=pixels.clear)
    dropping.start()
    dropping.join()
    assert cuda.pinned == {}


@pytest.mark.parametrize("kind", ["exclusive", "capturing"])
def test_memory_that_is_dropped_during_a_capture_is_freed_after_it(cuda: Cuda, kind: str) -> None:
    pixels = [pinned_array((2, 3), GPU)]
    with getattr(capture_lock, kind)():
        pixels.clear()
        assert len(cuda.pinned) == 1
    assert cuda.pinned == {}


@pytest.mark.parametrize("function", ["cuCtxSetCurrent", "cuMemFreeHost"])
def test_memory_of_a_lost_gpu_is_dropped_silently(cuda: Cuda, function: str) -> None:
    pixels = pinned_array((2, 3), GPU)
    cuda.errors[function] = 700
    del pixels  # an exception in a finalizer would fail this test
    cuda.pinned.clear()
    cuda.streams.clear()
    cuda.stack.clear()


def test_memory_that_cannot_be_had_is_an_error_with_its_number_and_leaves_nothing(cuda: Cuda) -> None:
    cuda.errors["cuMemHostAlloc"] = 2
    with pytest.raises(DriverError, match=r"^CUDA error 2 \(CUDA_ERROR_OUT_OF_MEMORY: ") as caught:
        pinned_array((2, 3), GPU)
    assert caught.value.code == 2
    assert cuda.streams == {}


def test_a_host_buffer_is_ordinary_memory_where_there_is_no_other(cuda: Cuda) -> None:
    cuda.errors["cuMemHostAlloc"] = 2
    assert host_buffer((2, 3), GPU).tolist() == [[0, 0, 0], [0, 0, 0]]
    cuda.errors.clear()
    pinned = host_buffer((2, 3), GPU)
    assert len(cuda.pinned) == 1
    del pinned


def test_a_callers_memory_is_page_locked_until_its_last_view_is_gone(cuda: Cuda) -> None:
    pixels = np.zeros((2, 3, 4), np.uint8)
    address = pixels.ctypes.data
    assert pin(pixels, GPU)
    assert list(cuda.pinned) == [address]
    view = pixels[1:]
    del pixels
    assert list(cuda.pinned) == [address]
    del view
    assert (cuda.pinned, cuda.streams) == ({}, {})


def test_memory_that_cannot_be_page_locked_is_used_as_it_is(cuda: Cuda) -> None:
    cuda.errors["cuMemHostRegister"] = 2
    assert not pin(np.zeros(8, np.uint8), GPU)
    assert (cuda.pinned, cuda.streams) == ({}, {})
