"""The resize kernel, compiled as C++, against Pillow; and its driver calls against a driver in C."""

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

from mineral_batch.cuda import device as cuda_driver
from mineral_batch.images.gpu.resize import Resizer, table

from ....fakes.nvimgcodec import GPUS
from ...conftest import scene
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
        "            resample(in, out, table, taps, size_in, size_out, inner, count);\n}\n" + DRIVER
    )
    library = folder / "kernel.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, folder / "kernel.cpp"], check=True)
    return ctypes.CDLL(str(library))


#: A driver in C, with the types of cuda.h: what goes wrong between Python and C does so here as on a GPU. Memory is the
#: processor's, above 4 GiB like all of it, and a kernel runs at once.
DRIVER = r"""
#include <cstdlib>
#include <cstring>
typedef unsigned long long Pointer;
typedef struct Opaque *Handle;
static int depth;
extern "C" {
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 115; return device == 1 ? 0 : 1; }
int cuDeviceGetDefaultMemPool(Handle *pool, int device)
{
    *pool = (Handle)0x7f4000000000;
    return device == 1 ? 0 : 1;
}
int cuMemPoolSetAttribute(Handle pool, int which, void *value)
{
    return pool == (Handle)0x7f4000000000 && which == 4 && *(unsigned long long *)value == 5ull << 32 ? 0 : 1;
}
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)5 << 32; *total = (size_t)6 << 32; return 0; }
int cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = (Handle)(0x7f0000000000 + device); return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return device == 1 ? 0 : 1; }
int cuCtxPushCurrent_v2(Handle context) { ++depth; return context == (Handle)0x7f0000000001 ? 0 : 201; }
int cuCtxPopCurrent_v2(Handle *context) { --depth; *context = 0; return 0; }
int cuCtxSynchronize() { return depth == 1 ? 0 : 201; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { *memory = malloc(size); return flags == 1 ? 0 : 1; }
int cuMemFreeHost(void *memory) { free(memory); return 0; }
int cuStreamCreate(Handle *stream, unsigned flags) { *stream = (Handle)0x7f1000000000; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(Handle stream) { return stream == (Handle)0x7f1000000000 ? 0 : 400; }
int cuStreamDestroy_v2(Handle stream) { return stream == (Handle)0x7f1000000000 ? 0 : 400; }
int cuMemAlloc_v2(Pointer *memory, size_t size) { *memory = (Pointer)malloc(size); return 0; }
int cuMemFree_v2(Pointer memory) { free((void *)memory); return 0; }
int cuMemsetD8_v2(Pointer memory, unsigned char value, size_t size) { memset((void *)memory, value, size); return 0; }
int cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t size, Handle stream)
{
    memcpy((void *)to, from, size);
    return cuStreamSynchronize(stream);
}
int cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, Handle stream)
{
    memcpy(to, (const void *)from, size);
    return cuStreamSynchronize(stream);
}
int cuModuleLoadData(Handle *module, const void *image)
{
    *module = (Handle)0x7f2000000000;
    return strstr((const char *)image, ".visible .entry resample(") ? 0 : 218;
}
int cuModuleGetFunction(Handle *function, Handle module, const char *name)
{
    *function = (Handle)0x7f3000000000;
    return module == (Handle)0x7f2000000000 && !strcmp(name, "resample") ? 0 : 500;
}
int cuModuleUnload(Handle module) { return module == (Handle)0x7f2000000000 ? 0 : 400; }
int cuLaunchKernel(Handle function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared, Handle stream, void **args, void **extra)
{
    if (function != (Handle)0x7f3000000000 || y * z * block_y * block_z != 1 || block_x > 1024 || shared || extra)
        return 1;
    blockDim.x = block_x;
    for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < block_x; ++threadIdx.x)
            resample(*(unsigned char **)args[0], *(unsigned char **)args[1], *(int **)args[2], *(int *)args[3],
                     *(int *)args[4], *(int *)args[5], *(int *)args[6], *(long long *)args[7]);
    return cuStreamSynchronize(stream);
}
}
"""


def test_the_driver_is_called_with_the_right_types(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a lane but nvImageCodec, from the context to the result, on `DRIVER`."""
    monkeypatch.setattr(cuda_driver, "_driver", lambda: kernel)
    picture = scene(200, 90, 5)
    pixels = np.asarray(picture)
    context = cuda_driver.Context(GPUS[1])
    with context.current():
        assert context.free_memory() == 5 << 32
        context.keep_freed(5 << 32)
        stream = context.stream()
        args, result = context.allocate(pixels.nbytes), context.allocate(24 * 32 * 3)
        resizer = Resizer(context, stream, 32)
        context.to_gpu(args, pixels, stream)
        resizer.enqueue(int(args), picture.size, (0.0, 0.0, 200.0, 90.0), (32, 24), "bicubic", int(result))
        answer = np.empty((24, 32, 3), np.uint8)
        context.from_gpu(answer, result, stream)
        stream.synchronize()
        resizer.close()
        for memory in (args, result):
            memory.free()
        stream.close()
    context.release()
    locked = cuda_driver.page_locked((2, 3), 1)
    assert not locked.any()
    np.testing.assert_array_equal(answer, np.asarray(picture.resize((32, 24), PILImage.Resampling.BICUBIC)))


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
