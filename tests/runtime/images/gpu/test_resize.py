"""The resize kernel, compiled as C++, against Pillow. `tests/gpu_stubs` launches it through cuda-core."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image as PILImage

from mineral_batch.images.gpu.resize import table

from .conftest import SPEC

if TYPE_CHECKING:
    from numpy.typing import NDArray


SIZES = [(90, 60), (61, 60), (300, 7), (40, 30), (32, 24), (500, 333)]


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`resample.cu` as C++ for the processor, one thread after the other."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("the kernel's source is compiled by a C++ compiler, and there is none")
    folder = tmp_path_factory.mktemp("kernel")
    source = resources.files("mineral_batch.images.gpu").joinpath("resample.cu").read_text()
    (folder / "kernel.cpp").write_text(
        "#define __global__\nstatic struct { unsigned x; } blockIdx, blockDim, threadIdx;\n"
        + source
        + 'extern "C" void run(const unsigned char *in, unsigned char *out, const int *table, int taps, int size_in,\n'
        "                    int size_out, int inner, long long count)\n{\n    blockDim.x = 64;\n"
        "    for (blockIdx.x = 0; blockIdx.x * 64LL < count + 64; ++blockIdx.x)\n"
        "        for (threadIdx.x = 0; threadIdx.x < 64; ++threadIdx.x)\n"
        "            resample(in, out, table, taps, size_in, size_out, inner, count);\n}\n"
    )
    library = folder / "kernel.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"], check=True)
    return ctypes.CDLL(str(library))


def on_kernel(kernel: Any, pixels: NDArray[np.uint8], weights: NDArray[np.int32], inner: int) -> NDArray[np.uint8]:
    size_out, columns = weights.shape
    size_in = pixels.shape[1]
    out = np.full((pixels.shape[0], size_out, inner), 77, np.uint8)
    args, result, rows = (array.ctypes.data_as(ctypes.c_void_p) for array in (pixels, out, weights))
    kernel.run(args, result, rows, columns - 2, size_in, size_out, inner, ctypes.c_longlong(out.size))
    return out


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("is_cropped", [False, True])
def test_the_kernels_source_resizes_as_pillow_does(
    kernel: Any, size: tuple[int, int], interpolation: str, is_cropped: bool
) -> None:
    width, height = size
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    box = (width * 0.11, height * 0.07, width * 0.93, height * 0.88) if is_cropped else (0.0, 0.0, width, height)
    across = table(width, (box[0], box[2]), SPEC.width, interpolation)
    down = table(height, (box[1], box[3]), SPEC.height, interpolation)
    narrow = on_kernel(kernel, pixels, across, 3)
    found = on_kernel(kernel, narrow.reshape(1, height, SPEC.width * 3), down, SPEC.width * 3)
    filters = {"bilinear": PILImage.Resampling.BILINEAR, "bicubic": PILImage.Resampling.BICUBIC}
    # One axis at a time: Pillow 13 chooses the order, the kernel does not.
    half = PILImage.fromarray(pixels).resize((SPEC.width, height), filters[interpolation], (box[0], 0, box[2], height))
    part = (0, box[1], SPEC.width, box[3])
    expected = half.resize((SPEC.width, SPEC.height), filters[interpolation], part)
    np.testing.assert_array_equal(found.reshape(SPEC.height, SPEC.width, 3), np.asarray(expected))


def test_the_compiled_kernel_is_of_this_source() -> None:
    folder = resources.files("mineral_batch.images.gpu")
    digest = hashlib.sha256(folder.joinpath("resample.cu").read_bytes()).hexdigest()
    code = folder.joinpath("resample.ptx").read_text()
    assert f"sha256 {digest}" in code, "compile it anew, as its first lines say"
    assert ".visible .entry resample(" in code
