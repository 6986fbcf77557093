"""The choice between pycuda and cuda-core."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

from mineral_batch.cuda.core import CoreContext
from mineral_batch.cuda.probe import DriverError
from mineral_batch.cuda.pycuda import PycudaContext
from mineral_batch.errors import BackendError

if TYPE_CHECKING:
    from mineral_batch.cuda.interface import Context
    from mineral_batch.cuda.probe import Gpu

_log = logging.getLogger("mineral_batch")


def open_context(gpu: Gpu) -> Context:
    """Open a GPU with pycuda where it is installed and loads, otherwise with cuda-core.

    Raises:
        BackendError: if neither package is installed, or the GPU refuses.
    """
    try:
        importlib.import_module("pycuda.driver")
    except ModuleNotFoundError:
        return _open_core(gpu)
    except ImportError as error:
        _log.warning("pycuda does not load (%s): using cuda-core instead", error)
        return _open_core(gpu)
    return PycudaContext(gpu)


def _open_core(gpu: Gpu) -> Context:
    try:
        return CoreContext(gpu)
    except DriverError as error:
        raise BackendError(f"CUDA does not start on GPU {gpu.index} ({gpu.name}): {error}") from error
