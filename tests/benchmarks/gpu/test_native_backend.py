"""The native backend with a copy in place of the engine."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mineral_bench.gpu import native_backend

from ...fakes.cuda import Cuda


class RowCopier(Cuda):
    """A GPU that copies rows, too, and adds something to every byte."""

    added = 0

    def copy_rows(self, asked: Any, stream: int) -> tuple[int]:
        assert (asked.srcMemoryType, asked.dstMemoryType) == (2, 2)

        def rows() -> None:
            for row in range(asked.Height):
                source = self.at(asked.srcDevice + row * asked.srcPitch, asked.WidthInBytes)
                self.at(asked.dstDevice + row * asked.dstPitch, asked.WidthInBytes)[:] = source + np.uint8(self.added)

        self.enqueue(stream, rows)
        return (0,)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> RowCopier:
    gpu = RowCopier()
    gpu.install(monkeypatch)
    vars(sys.modules["cuda.bindings.driver"]).update(
        CUDA_MEMCPY2D=SimpleNamespace,
        CUmemorytype=SimpleNamespace(CU_MEMORYTYPE_DEVICE=2),
        cuMemcpy2DAsync=gpu.copy_rows,
    )
    return gpu


def test_the_native_backend_gives_back_what_it_was_given_by_a_copy_in_the_place_of_an_engine(cuda: RowCopier) -> None:
    told = native_backend.copied_bytes(batch=3, rounds=2)
    assert "GPU 0 (NVIDIA L4), copied bytes, CUDA by cuda-core" in told
    assert told.endswith(", output right")
    assert "launch" in cuda.log, "as a CUDA graph"
    cuda.require_given_back()


def test_a_native_backend_that_answers_wrongly_has_failed(cuda: RowCopier) -> None:
    cuda.added = 1
    with pytest.raises(ValueError, match=r"^output WRONG: 4 of 4 batches"):
        native_backend.copied_bytes(batch=2, rounds=1)
