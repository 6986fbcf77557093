"""A fake GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ...fakes.cuda import Cuda

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """One GPU with cuda-core and without pycuda; nothing may be left on it."""
    cuda = Cuda()
    cuda.install(monkeypatch)
    yield cuda
    cuda.require_given_back()
