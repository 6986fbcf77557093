"""What the NVIDIA driver says of the GPUs, and page-locked memory from it, without a CUDA package installed.

The driver's own library comes with every driver, and unlike `nvidia-smi` it numbers the GPUs as ONNX Runtime does and
obeys CUDA_VISIBLE_DEVICES. Function names and values: the CUDA Driver API's reference.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mineral_batch.images import Pixels

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_SUCCESS = 0
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_PORTABLE = 1  # page-locked for every context, so that a group of GPUs can share a buffer


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs see.

    Attributes:
        index: as CUDA numbers them, from 0.
        name: such as `NVIDIA H200`.
        compute_capability: such as `9.0`.
        memory: bytes.
    """

    index: int
    name: str
    compute_capability: str
    memory: int


class DriverError(Exception):
    """The driver is absent or refuses; the text says which."""


def gpus() -> list[Gpu]:
    """All that are visible.

    Raises:
        DriverError: if there is no driver, or it has no GPU to offer.
    """
    driver = _driver()
    count = ctypes.c_int()
    _call(driver.cuDeviceGetCount, ctypes.byref(count))
    return [_gpu(driver, index) for index in range(count.value)]


def cuda_version() -> str:
    """The newest CUDA that the driver runs, such as `13.0`.

    Raises:
        DriverError: if there is no driver.
    """
    number = ctypes.c_int()
    _call(_driver().cuDriverGetVersion, ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def page_locked(shape: Sequence[int], device: int) -> Pixels:
    """A uint8 array of zeros that the GPU reads without a copy in between; freed with the array.

    Raises:
        DriverError: if the memory is not to be had.
    """
    driver = _driver()
    size = prod(shape)
    address = ctypes.c_void_p()
    _enter_context(driver, device)
    try:
        _call(driver.cuMemHostAlloc, ctypes.byref(address), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
    finally:
        driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    assert address.value is not None
    memory = (ctypes.c_uint8 * size).from_address(address.value)
    weakref.finalize(memory, driver.cuMemFreeHost, address)
    pixels: Pixels = np.ctypeslib.as_array(memory).reshape(shape)
    pixels[...] = 0
    return pixels


@cache
def _driver() -> Any:
    """The library, started."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DriverError(f"no NVIDIA driver ({_LIBRARY} does not load)") from None
    _call(driver.cuInit, ctypes.c_uint(0))
    return driver


def _gpu(driver: Any, index: int) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _call(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    _call(driver.cuDeviceGetName, name, ctypes.c_int(len(name)), device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(major), ctypes.c_int(_COMPUTE_CAPABILITY_MAJOR), device)
    _call(driver.cuDeviceGetAttribute, ctypes.byref(minor), ctypes.c_int(_COMPUTE_CAPABILITY_MINOR), device)
    _call(driver.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _enter_context(driver: Any, index: int) -> None:
    """Make the GPU's primary context, the one that CUDA's runtime and so ONNX Runtime use, this thread's."""
    device, context = ctypes.c_int(), ctypes.c_void_p()
    _call(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    # Never released: the memory must outlive every session, and the runtime holds the context anyway.
    _call(driver.cuDevicePrimaryCtxRetain, ctypes.byref(context), device)
    _call(driver.cuCtxPushCurrent_v2, context)


def _call(function: Any, *arguments: Any) -> None:
    result = function(*arguments)
    if result != _SUCCESS:
        raise DriverError(f"the NVIDIA driver answers {function.__name__} with CUDA error {result}")
