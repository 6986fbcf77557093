"""Execution contexts; for TensorRT for RTX, the kernels that it compiles for them, kept from one run to the next.

TensorRT itself has its kernels in the plan. TensorRT for RTX compiles them on the GPU when a context first runs a batch
size: seconds to minutes at every opening, and for every lane, if nobody keeps them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

from mineral_batch.engines.cache import make_folder
from mineral_batch.errors import BackendError
from mineral_batch.files import atomic_file, cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.tensorrt.plan import EngineRecord

_log = logging.getLogger("mineral_batch")


class Contexts:
    """Makes execution contexts of an engine.

    Args:
        trt: the module.
        engine: of it.
        kept: file of the compiled kernels; read if it fits this software and GPU, which TensorRT checks.
    """

    def __init__(self, trt: Any, engine: Any, kept: Path) -> None:
        self._trt, self._engine, self._kept = trt, engine, kept
        self._compiles = hasattr(trt, "DynamicShapesKernelSpecializationStrategy")
        self._kernels: Any = None  # the contexts only borrow it
        self._known = b""

    def make(self) -> Any:
        """One more; of TensorRT for RTX, with all kernels of a batch size compiled before it first runs.

        By default it compiles in the background and runs general kernels until the others are there, and a CUDA graph
        would keep the general ones for ever.

        Raises:
            BackendError: if the GPU has too little memory for it.
        """
        context = self._engine.create_execution_context(*([self._config()] if self._compiles else []))
        if context is None:
            raise BackendError("the GPU has too little free memory for the engine: choose a smaller --batch-size")
        return context

    def _config(self) -> Any:
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._kernels is None:
            self._kernels = config.create_runtime_cache()
            self._known = self._read()
        config.set_runtime_cache(self._kernels)
        return config

    def _read(self) -> bytes:
        try:
            content = self._kept.read_bytes()
        except OSError:
            return b""
        return content if self._kernels.deserialize(content) else b""

    def keep(self) -> None:
        """Write what was compiled beside what was read, once every context has run, each for its batch size.

        If that fails the next opening takes as long.
        """
        made = b"" if self._kernels is None else bytes(self._kernels.serialize())
        if made == self._known:
            return
        try:
            make_folder(self._kept.parent)
            with atomic_file(self._kept) as file:
                file.write(made)
        except (OSError, BackendError) as error:
            _log.warning("cannot keep the compiled kernels (%s): the next start takes as long", error)


def kernels_path(record: EngineRecord, gpu: Gpu) -> Path:
    """Where an engine's compiled kernels are kept.

    Args:
        record: of the engine.
        gpu: that they are for.
    """
    facts = [record.engine_sha256, record.runtime, record.version, gpu.name, gpu.compute_capability]
    return cache_folder() / "kernels" / (hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24] + ".bin")
