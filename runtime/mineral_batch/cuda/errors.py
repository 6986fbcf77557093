"""What an error of ONNX Runtime on a GPU means, and what to do with the session that met it.

ONNX Runtime has one exception for everything: only its words, and those of CUDA, cuBLAS and cuDNN, tell what happened.
"""

from __future__ import annotations

import ctypes
import re
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OUT_OF_MEMORY = (
    "out of memory",
    "failed to allocate memory",
    "alloc_failed",
    "device_allocation_failed",
    "outofmemory",
    "out_of_memory",
)
# What ONNX Runtime says when a session is made for a graph that it cannot capture, and CUDA's errors 900 to 908.
_GRAPH = re.compile(
    r"cannot use the (graph capture|cuda graph) feature|cuda (failure|error) 90\d\b|stream is capturing|during capture"
)
_GPU = re.compile(r"\b(cuda|cublas(lt)?|cudnn(_fe)?|cufft|curand) (failure|error)|enqueue failed")
_CUDA = re.compile(r"\bcuda (?:failure|error) (\d+)")
# Of CUresult in cuda.h, the same in cudaError_t: errors after which, it says, the process must be started again, and
# memory or links that fail (214, 220), a destroyed context (709) and CUDA's own "unknown" (999). After any other the
# GPU still works: it has no such kernel (209), the driver is too old (35) or not the one that runs (803).
_LASTING = {214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911, 999}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help."""
    return any(word in text for text in _texts(error) for word in _OUT_OF_MEMORY)


def is_about_graphs(error: BaseException) -> bool:
    """Whether it may work without a CUDA graph; the GPU itself still works."""
    return any(_GRAPH.search(text) for text in _texts(error))


def is_lost(error: BaseException, is_well: Callable[[], bool]) -> bool:
    """Whether CUDA failed in a way after which every further call fails, to the end of the process.

    Args:
        error: of ONNX Runtime or of the driver.
        is_well: asks the GPU. It is called where the error is of a library on top of CUDA: cuDNN uses the same words
            for a kernel that it lacks and for one that broke the GPU.
    """
    if is_out_of_memory(error) or is_about_graphs(error):
        return False
    texts = list(_texts(error))
    numbers = {int(number) for text in texts for number in _CUDA.findall(text)}
    if numbers:
        return not numbers.isdisjoint(_LASTING)
    return any(_GPU.search(text) for text in texts) and not is_well()


def clear_frames(error: BaseException) -> None:
    """Empty the frames that an error holds; otherwise the failed session lives as long as the error is kept."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def leak(value: Any) -> None:
    """Never destroy the value, not even when the process ends.

    ONNX Runtime destroys a CUDA graph in a destructor that throws when CUDA reports an error
    (core/providers/cuda/cuda_graph.cc): the process would end in std::terminate before the user has read what failed.
    The memory is lost with the GPU anyway.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))


def _texts(error: BaseException) -> Iterator[str]:
    return (str(one).lower() for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
