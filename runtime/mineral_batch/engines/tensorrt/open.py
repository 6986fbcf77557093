"""Open an engine from `mineral-export trt`, or an ONNX file, from which one is built on first use."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mineral_batch.cuda.opening import open_context
from mineral_batch.cuda.probe import cuda_version, require_gpu
from mineral_batch.engines.base import TF32
from mineral_batch.engines.cache import make_folder
from mineral_batch.engines.onnx_cpu import open_cpu
from mineral_batch.engines.tensorrt.build import Network
from mineral_batch.engines.tensorrt.engine import TensorRtEngine
from mineral_batch.engines.tensorrt.library import load_library
from mineral_batch.engines.tensorrt.options import Options
from mineral_batch.engines.tensorrt.plan import (
    SUFFIXES,
    EngineRecord,
    Profile,
    read_engine,
    read_record,
    rebuild_command,
    sidecar_path,
    write_engine,
)
from mineral_batch.errors import BackendError, MineralError
from mineral_batch.files import cache_folder
from mineral_batch.model.onnx_file import graph_digest, read_contract

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.base import EngineOptions
    from mineral_batch.engines.tensorrt.build import Built
    from mineral_batch.engines.tensorrt.library import Library

BATCH_SIZE = 64
# Images of noise that a new engine is tried on, and a difference of a probability that no precision explains.
_NOISE = 4
_WRONG = 0.3
_log = logging.getLogger("mineral_batch")


def open_tensorrt(path: Path, options: EngineOptions) -> TensorRtEngine:
    """Open an engine with its description, or an ONNX file, from which one is built once for this GPU and batch.

    Raises:
        BackendError: if there is no GPU, TensorRT or CUDA package, or the engine is stale or for another machine.
        ContractError: if the model or its description is missing or damaged.
    """
    is_engine = path.suffix in SUFFIXES
    contract = None if is_engine else read_contract(path)
    gpu = require_gpu("tensorrt", options.device)
    if contract is None:
        library = load_library(read_record(path).runtime)
        record, plan = read_engine(path, library, gpu)
    else:
        library = load_library()
        record, plan = _from_cache(path, options, library, gpu)
        # What the file says now: thresholds may have changed since the engine was built.
        record = replace(record, contract=contract)
    if options.precision not in ("auto", record.precision):
        raise BackendError(
            f"{path.name} computes in {record.precision}: its types are part of the graph; for {options.precision} "
            f"use another file (mineral-export fp16 makes one in float16)"
        )
    return TensorRtEngine(library, gpu, record, plan, options.batch_size)


def _from_cache(source: Path, options: EngineOptions, library: Library, gpu: Gpu) -> tuple[EngineRecord, bytes]:
    """Read the engine of exactly this graph, software, GPU, batch and precision, or build and keep it."""
    batch = options.batch_size or BATCH_SIZE
    build = Options(Profile(batch, batch, batch), tf32=options.precision != "float32")
    engine = cache_path(source, library, gpu, build)
    if engine.is_file() and sidecar_path(engine).is_file():
        try:
            return read_engine(engine, library, gpu)
        except MineralError as error:
            _log.warning("%s: building it again", error)
    make_folder(engine.parent)  # before minutes of work
    _log.warning("building a TensorRT engine of %s for %s: minutes, and only once", source.name, gpu.name)
    cuda = open_context(gpu)
    try:
        with cuda.current():
            built = Network(library, source).build(build)
    finally:
        cuda.close()
    record = describe(built, source, engine, library, build, gpu)
    _require_answers(TensorRtEngine(library, gpu, record, built.plan, batch), source)
    write_engine(engine, built.plan, record)
    return record, built.plan


def _require_answers(backend: TensorRtEngine, source: Path) -> None:
    """Compare a new engine with ONNX Runtime on the CPU, where that is installed, and close it.

    It is compared on noise, to catch a wrong kernel; `mineral-export verify` measures what the precision costs. In 8
    bits engines differ on noise, which no calibration has seen: there it is enough that all answers are numbers.

    Raises:
        BackendError: if the answers differ.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (_NOISE, *backend.contract.input.shape), np.uint8)
    try:
        with closing(backend):
            found = backend.infer(pixels)
        with closing(open_cpu(source)) as reference:
            difference = float(np.abs(found - reference.infer(pixels)).max())
    except BackendError as error:
        _log.warning("the engine's answers are not compared with its model's: %s", error)
        return
    if not difference <= (1 if backend.contract.numerics.is_quantized else _WRONG):  # also where it is not a number
        raise BackendError(
            f"the engine that {backend.version} builds from {source.name} differs from ONNX Runtime by "
            f"{difference:.2g} in a probability: use --backend onnx-cuda, and report it to TensorRT's authors"
        )


def cache_path(source: Path, library: Library, gpu: Gpu, options: Options) -> Path:
    """Where the engine is kept: the name of its folder depends on everything that the engine depends on.

    Args:
        source: the ONNX file; its graph counts, not its name or its contract.
        library: the TensorRT that builds it.
        gpu: the GPU that it is for.
        options: of the build.
    """
    facts = [graph_digest(source), library.name, library.version, gpu.name, gpu.compute_capability, cuda_version()]
    key = hashlib.sha256(json.dumps([*facts, *options.arguments(), options.tf32]).encode()).hexdigest()[:24]
    return cache_folder() / "engines" / key / "model.plan"


def describe(
    built: Built, source: Path, engine: Path, library: Library, options: Options, gpu: Gpu | None
) -> EngineRecord:
    """Make the description that is written beside an engine.

    Args:
        built: the engine.
        source: the ONNX file that it was built from.
        engine: where it will lie.
        library: that built it.
        options: how.
        gpu: of this machine, None if it has none.
    """
    chips = options.compute_capabilities or ((gpu.compute_capability,) if gpu else ())
    precision = built.layers.precision
    return EngineRecord(
        contract=read_contract(source),
        source=source.name,
        onnx_sha256=graph_digest(source),
        engine_sha256=hashlib.sha256(built.plan).hexdigest(),
        runtime=library.name,
        version=library.version,
        cuda=cuda_version() if gpu else "",
        gpu=gpu.name if gpu else "",
        compute_capabilities=chips,
        precision=TF32 if options.tf32 and precision == "float32" else precision,
        products=built.layers.products,
        layers=built.layers.all,
        layers_from=built.layers.of,
        profile=options.profile,
        inputs=built.inputs,
        outputs=built.outputs,
        rebuild=rebuild_command(engine, source.name, "--runtime", library.name, *options.arguments()),
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
    )
