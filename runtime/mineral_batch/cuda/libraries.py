"""Find CUDA's and cuDNN's libraries for ONNX Runtime in the Python packages that bring them.

`onnxruntime.preload_dlls` (1.21 on) looks beside onnxruntime itself and where the system's loader does. Where packages
lie under several roots, as on a PYTHONPATH of unpacked archives, it finds nothing: here every entry of `sys.path` is
searched before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger("mineral_batch")

# Where the packages of NVIDIA and torch keep them, below an entry of sys.path.
_FOLDERS = ("nvidia/*/lib", "torch/lib")


def load_cuda_libraries(runtime: Any) -> None:
    """Load what ONNX Runtime needs, wherever a Python package has it; what is not found is no error yet.

    A library that is loaded once is found again by its name, whoever asks. ONNX Runtime's own search comes last: it
    knows the layout of Windows, and its provider can be registered only when the libraries are there. What it prints
    is of no use before it is known whether the session opens.

    Args:
        runtime: the module `onnxruntime`.
    """
    if sys.platform == "linux":
        for name in _needed(str(getattr(runtime, "cuda_version", "") or "")):
            if not _is_loaded(name):
                _load(name)
    if hasattr(runtime, "preload_dlls"):
        with _silent(runtime):
            runtime.preload_dlls()


def _needed(cuda: str) -> list[str]:
    """Names of the libraries, those first that others need, for a version of CUDA such as `13.0`; none without it."""
    major = cuda.partition(".")[0]
    if not major.isdigit():
        return []
    return [
        f"libcublasLt.so.{major}",
        f"libcublas.so.{major}",
        f"libnvrtc.so.{major}",
        "libcurand.so.10",
        f"libcufft.so.{12 if int(major) >= 13 else 11}",
        f"libcudart.so.{major}",
        "libcudnn.so.9",
    ]


def _is_loaded(name: str) -> bool:
    """Whether torch, for one, has brought it into this process."""
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _load(name: str) -> None:
    """The first of this name, in the order in which Python imports packages."""
    for root in dict.fromkeys(map(Path, sys.path)):
        for folder in _FOLDERS:
            for path in sorted(root.glob(f"{folder}/{name}")):
                # A damaged or a foreign one: the next may load.
                with suppress(OSError):
                    ctypes.CDLL(str(path))
                    _log.debug("loaded %s", path)
                    return


@contextmanager
def _silent(module: Any) -> Iterator[None]:
    """What this module's functions print goes to the log; other threads may print, so stdout stays as it is."""
    module.print = lambda *words, **_: _log.debug("onnxruntime: %s", " ".join(map(str, words)))
    try:
        yield
    finally:
        del module.print
