"""The real cuda-core on a driver in C: every call's types, order and clean-up, and the resize kernel's arguments."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image as PILImage

if TYPE_CHECKING:
    from .conftest import Child

pytestmark = pytest.mark.gpu_stubs


def test_an_image_is_resized_through_cuda_core(driver_child: Child) -> None:
    found, calls = driver_child("resize", [90, 200, 3], [32, 24])
    image = PILImage.fromarray(np.array(found["pixels"], np.uint8))
    # Pillow begins with the height here: one axis at a time, the widths first as the kernel does.
    narrow = image.resize((32, 90), PILImage.Resampling.BICUBIC)
    expected = np.asarray(narrow.resize((32, 24), PILImage.Resampling.BICUBIC))
    np.testing.assert_array_equal(np.array(found["answer"], np.uint8), expected)
    assert (found["free"], found["was_zero"]) == (5 << 32, True)
    for opened, closed in (
        ("create stream", "destroy stream"),
        ("allocate", "free"),
        ("allocate pinned", "free pinned"),
        ("begin capture", "end capture"),
        ("instantiate", "destroy executable"),
    ):
        assert calls.count(opened) == calls.count(closed) > 0, (opened, calls)
    assert calls.count("launch graph") == 1
    assert f"keep {5 << 32}" in calls
    assert calls.index("end capture") < calls.index("instantiate") < calls.index("launch graph")


def test_errors_of_the_driver_have_their_numbers(driver_child: Child) -> None:
    found, calls = driver_child("failures")
    first, capture, lost = found
    assert "CUDA_ERROR_INVALID_VALUE" in first
    assert capture == "it allocates"
    assert lost.startswith("700 CUDA error 700 (CUDA_ERROR_ILLEGAL_ADDRESS")
    assert calls.count("begin capture") == calls.count("end capture") == 2, "a capture that fails is ended"


def test_the_ptx_in_the_repository_is_what_nvrtc_makes_of_its_source(driver_child: Child) -> None:
    try:
        found, _ = driver_child("compiled", "compute_75")
    except AssertionError as error:
        pytest.skip(f"NVRTC is not installed: {str(error).strip().splitlines()[-1]}")
    assert found["code"] == 0
    ptx = resources.files("mineral_batch.images.gpu").joinpath("resample.ptx").read_text("ascii")
    made = re.search(r"by NVRTC (\d+)\.(\d+)", ptx)
    assert made is not None
    if found["version"] != [int(number) for number in made.groups()]:
        pytest.skip(f"another NVRTC, {found['version']}, writes other registers")
    assert instructions(found["ptx"]) == instructions(ptx)


def instructions(ptx: str) -> list[str]:
    """The kernel, without comments, empty lines and NVRTC's declarations before it."""
    lines = (line.partition("//")[0].strip() for line in ptx[ptx.index(".visible .entry") :].splitlines())
    return [line for line in lines if line]
