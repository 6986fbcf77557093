"""Ask the NVIDIA driver which GPUs there are, on machines where no CUDA package is installed.

The driver's own library comes with every driver. Unlike `nvidia-smi` it numbers the GPUs as ONNX Runtime does and obeys
CUDA_VISIBLE_DEVICES. Everything beyond these questions is cuda-core's work: see `mineral_batch.cuda.core`.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

from mineral_batch.errors import BackendError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# Of `CUdevice_attribute` and `CUresult` in cuda.h.
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_EXPLANATIONS = {
    100: "no GPU is visible",
    803: "the driver's library and its kernel module differ: restart the machine",
}


class DriverError(Exception):
    """The driver is missing, or a call of it failed.

    Attributes:
        code: CUDA's error number; None where the driver was not reached.
    """

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA programs see.

    Attributes:
        index: CUDA's number of it, from 0.
        name: such as `NVIDIA H200`.
        compute_capability: such as `9.0`.
        memory: bytes.
    """

    index: int
    name: str
    compute_capability: str
    memory: int

    @property
    def kind(self) -> str:
        """Its name and compute capability: kernels, and with them the last digits of a probability, depend on both."""
        return f"{self.name} (compute capability {self.compute_capability})"


def gpus() -> list[Gpu]:
    """All visible GPUs, in CUDA's order.

    Raises:
        DriverError: if there is no driver, or it reports an error.
    """
    driver = _driver()
    count = ctypes.c_int()
    _check(driver.cuDeviceGetCount, ctypes.byref(count))
    return [_gpu(driver, index) for index in range(count.value)]


def first_gpu() -> Gpu | None:
    """The first GPU; None where there is no driver, or it shows none."""
    try:
        return next(iter(gpus()), None)
    except DriverError:
        return None


def require_gpu(user: str, index: int | None = None) -> Gpu:
    """The GPU of this index, by default the first.

    Call it before any library that crashes without a driver, as TensorRT does.

    Args:
        user: the option or engine that needs the GPU, for the message.
        index: CUDA's number of the GPU.

    Raises:
        BackendError: if there is no driver, or it has no such GPU.
    """
    try:
        found = gpus()
    except DriverError as error:
        raise BackendError(
            f"{user} needs an NVIDIA GPU: {error}; install the NVIDIA driver, or use a machine that has one"
        ) from None
    if not found:
        raise BackendError(f"{user} needs an NVIDIA GPU, and the driver shows none: check CUDA_VISIBLE_DEVICES")
    if not 0 <= (index or 0) < len(found):
        raise BackendError(f"{user}: there is no GPU {index}, only {', '.join(str(gpu.index) for gpu in found)}")
    return found[index or 0]


def cuda_version() -> str:
    """The newest CUDA version that the driver supports, such as `13.0`.

    Raises:
        DriverError: if there is no driver.
    """
    number = ctypes.c_int()
    _check(_driver().cuDriverGetVersion, ctypes.byref(number))
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


@cache
def _driver() -> Any:
    """The driver's library, initialized."""
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise DriverError(f"no NVIDIA driver ({_LIBRARY} does not load)") from None
    _check(driver.cuInit, ctypes.c_uint(0))
    return driver


def _gpu(driver: Any, index: int) -> Gpu:
    device, major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    _check(driver.cuDeviceGet, ctypes.byref(device), ctypes.c_int(index))
    _check(driver.cuDeviceGetName, name, ctypes.c_int(len(name)), device)
    _check(driver.cuDeviceGetAttribute, ctypes.byref(major), ctypes.c_int(_COMPUTE_CAPABILITY_MAJOR), device)
    _check(driver.cuDeviceGetAttribute, ctypes.byref(minor), ctypes.c_int(_COMPUTE_CAPABILITY_MINOR), device)
    _check(driver.cuDeviceTotalMem_v2, ctypes.byref(memory), device)
    return Gpu(index, name.value.decode(errors="replace"), f"{major.value}.{minor.value}", memory.value)


def _check(function: Any, *arguments: Any) -> None:
    code = function(*arguments)
    if code:
        explanation = f" ({_EXPLANATIONS[code]})" if code in _EXPLANATIONS else ""
        raise DriverError(f"{function.__name__} failed with CUDA error {code}{explanation}", code)
