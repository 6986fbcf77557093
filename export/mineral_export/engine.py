"""An ONNX file becomes a TensorRT engine of the precision asked for, or none is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mineral_batch._onnx_file import graph_digest, read_contract
from mineral_batch.backends.cuda_driver import DriverError, gpus
from mineral_batch.backends.tensorrt import describe
from mineral_batch.backends.tensorrt_build import MIXED, Network, require_buildable
from mineral_batch.backends.tensorrt_engine import SUFFIXES, EngineRecord, write_engine
from mineral_batch.backends.tensorrt_library import load_library
from mineral_batch.errors import BackendError, DataError

if TYPE_CHECKING:
    from mineral_batch.backends.cuda_driver import Gpu
    from mineral_batch.backends.tensorrt_build import Layers, Options, Progress

Precision = Literal["fp16", "fp32", "as-is"]
_NAMES = {"fp16": "float16", "fp32": "float32"}
_QUANTISED = ("int8", "float8")


@dataclass(frozen=True)
class Engine:
    """A written engine."""

    path: Path
    size: int
    record: EngineRecord


def export_engine(
    source: Path,
    target: Path,
    options: Options,
    *,
    precision: Precision = "fp16",
    runtime: str | None = None,
    rebuild: str | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build a TensorRT engine of an ONNX file, with a description beside it.

    Args:
        source: written by `mineral-export`; float32, or already in the precision asked for.
        target: `.plan` or `.engine`; the description is TARGET.json.
        options: of the build.
        precision: of the matrix products: `fp16` converts a float32 file first, `as-is` takes any file as it is.
        runtime: `tensorrt` or `tensorrt-rtx`; None for whichever is installed.
        rebuild: the command that did this, for the description; None for one made from the other arguments.
        progress: called while building.

    Raises:
        BackendError: if TensorRT or, where it needs one, a GPU is missing, it refuses the graph, or the engine is not
            of the precision asked for; nothing is written.
        ContractError: if the source is no model with a contract.
        DataError: if the target cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise DataError(f"{target} is no name for an engine: end it in {' or '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise DataError(f"no such folder: {target.parent}; make it first or choose another with -o")
    read_contract(source)  # before minutes of work
    library = load_library(runtime)
    require_buildable(library, options)
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        typed = _typed(source, Path(folder, source.name), precision)
        network = Network(library, typed)
        require_precision(network.layers(), precision)
        built = network.build(options, progress)
        require_precision(built.layers, precision)
        record = describe(built, typed, target, library, options, _gpu())
    # The graph that the user has, so that a later change of it is noticed.
    rebuild = rebuild or f"{record.rebuild} --precision {precision}"
    record = replace(record, onnx_sha256=graph_digest(source), rebuild=rebuild)
    write_engine(target, built.plan, record)
    return Engine(target, len(built.plan), record)


def require_precision(layers: Layers, precision: Precision) -> None:
    """Every convolution and matrix product must be of the precision asked for.

    Raises:
        BackendError: if one is not, with the counts.
    """
    if precision == "as-is" or layers.precision == _NAMES[precision]:
        return
    counts = ", ".join(f"{count} in {name}" for name, count in layers.products.items())
    hint = f"precision {MIXED if layers.precision == MIXED else layers.precision}"
    raise BackendError(
        f"nothing was written: asked for {precision}, and of the matrix products are {counts} ({hint}); "
        f"give a float32 file from mineral-export onnx, or take it with --precision as-is"
    )


def _typed(source: Path, scratch: Path, precision: Precision) -> Path:
    """A file whose graph is of the precision: the source itself, or a converted copy."""
    stored = read_contract(source).provenance.get("precision")
    if precision != "fp16" or stored == "float16":
        return source
    if stored in _QUANTISED:
        raise BackendError(f"{source} is {stored} already: build it with --precision as-is")
    from mineral_export.fp16 import to_fp16

    return to_fp16(source, scratch).path


def _gpu() -> Gpu | None:
    try:
        return next(iter(gpus()), None)
    except DriverError:
        return None
