"""A provider of the real onnxruntime-gpu that does not load is explained in the loader's own words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from .conftest import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.gpu_stubs


def test_the_missing_library_is_named(interpreter: Path) -> None:
    facts, _ = run(interpreter, [], "facts")
    reason = facts["reasons"]["CUDAExecutionProvider"]
    assert re.match(r"lib\w+\.so\.\d+: cannot open shared object file", reason)
    assert "[gpu]'" in reason or "install the NVIDIA driver" in reason
