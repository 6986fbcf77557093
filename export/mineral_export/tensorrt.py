"""Build a TensorRT engine from an ONNX file; it is written only in the requested precision and with the same output."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mineral_batch.cuda.probe import first_gpu
from mineral_batch.engines.tensorrt.build import Network
from mineral_batch.engines.tensorrt.layers import MIXED
from mineral_batch.engines.tensorrt.library import load_library
from mineral_batch.engines.tensorrt.open import describe
from mineral_batch.engines.tensorrt.plan import SUFFIXES, EngineRecord, fits_chip, sidecar_path, write_engine
from mineral_batch.engines.tensorrt.targets import require_buildable
from mineral_batch.errors import BackendError, DataError
from mineral_batch.model.onnx_file import graph_digest, read_contract
from mineral_export.verify.artifacts import open_artifact
from mineral_export.verify.budget import budget_for, least_exact
from mineral_export.verify.parity import compare
from mineral_export.verify.samples import load_samples
from mineral_export.verify.staging import require_writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.tensorrt.build import Built, Progress
    from mineral_batch.engines.tensorrt.layers import Layers
    from mineral_batch.engines.tensorrt.options import Options
    from mineral_export.verify.budget import Budget
    from mineral_export.verify.parity import Parity
    from mineral_export.verify.samples import Samples

Precision = Literal["fp16", "fp32", "as-is"]
_NAMES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class ExportedEngine:
    """A written engine.

    Attributes:
        path: the plan.
        size: bytes.
        record: its description.
        parity: how far its output lies from the source's; None if it was not compared.
        why_not: why it was not compared; empty if it was.
    """

    path: Path
    size: int
    record: EngineRecord
    parity: Parity | None
    why_not: str = ""


@dataclass(frozen=True)
class _Check:
    """How the output is checked."""

    samples: Callable[[], Samples]
    points: float | None
    force: bool

    def budget(self, precision: str) -> Budget:
        return budget_for(precision, self.points)


def export_engine(
    source: Path,
    target: Path,
    options: Options,
    *,
    precision: Precision = "fp16",
    runtime: str | None = None,
    samples: Callable[[], Samples] | None = None,
    points: float | None = None,
    force: bool = False,
    rebuild: str | None = None,
    progress: Progress | None = None,
) -> ExportedEngine:
    """Build a TensorRT engine from an ONNX file, with a description beside it.

    If the engine runs on this machine's GPU, its output is compared with the source's on ONNX Runtime's CPU engine
    before it is written.

    Args:
        source: written by `mineral-export`; float32, or already in the requested precision.
        target: `.plan` or `.engine`; the description is TARGET.json.
        options: build options.
        precision: of the matrix products: `fp16` converts a float32 file first, `as-is` takes any file as it is.
        runtime: `tensorrt` or `tensorrt-rtx`; None for the one that is installed.
        samples: makes the images to compare on, for the conversion and for the engine; None for synthetic ones.
        points: of mAP that may be lost; None for the precision's budget.
        force: write an engine that exceeds the budget, or that does not run on this machine's GPU.
        rebuild: the command that rebuilds the engine, for the description; None for one made from the arguments.
        progress: called while building and comparing.

    Raises:
        BackendError: if TensorRT, or a GPU that it needs, is missing, it refuses the graph, or the engine has not the
            requested precision or does not run on the GPU that it is for; nothing is written.
        ParityError: if the output differs by more than the budget; nothing is written.
        ContractError: if the source is not a model with a contract.
        DataError: if the target cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise DataError(f"{target} is not a name for an engine: end it in {' or '.join(SUFFIXES)}")
    contract = read_contract(source)
    for path in (target, sidecar_path(target)):  # before minutes of work
        require_writable(path, is_onnx=False)
    check = _Check(samples or partial(load_samples, contract), points, force)
    gpu = first_gpu()
    built, record = _build(source, target, options, precision, runtime, gpu, check, progress)
    record = replace(record, rebuild=rebuild or f"{record.rebuild} --precision {precision}")
    parity, why_not = None, _why_not_here(record, gpu)
    if not why_not:
        try:
            parity = _compare(source, built.plan, record, check, progress)
        except BackendError as error:
            why_not = _accept_unchecked(error, force=force)
    if parity and not force:
        parity.require(check.budget(least_exact((record.precision, *record.products))))
    record = replace(record, compared=str(parity or ""))
    write_engine(target, built.plan, record)
    return ExportedEngine(target, len(built.plan), record, parity, why_not)


def _build(
    source: Path,
    target: Path,
    options: Options,
    precision: Precision,
    runtime: str | None,
    gpu: Gpu | None,
    check: _Check,
    progress: Progress | None,
) -> tuple[Built, EngineRecord]:
    """Build the engine in memory; what the build itself needs is released at the end."""
    library = load_library(runtime)
    require_buildable(library, options)
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        typed = _convert(source, Path(folder, source.name), precision, check)
        network = Network(library, typed)
        require_precision(network.layers(), precision)
        built = network.build(options, progress)
        require_precision(built.layers, precision)
        record = describe(built, typed, target, library, options, gpu)
    # Of the user's own file, so that a later change of it is noticed.
    return built, replace(record, onnx_sha256=graph_digest(source))


def require_precision(layers: Layers, precision: Precision) -> None:
    """Check that every convolution and matrix product has the requested precision.

    An engine's layers are fused and unnamed, so products cannot be told apart there: one layer of the precision is
    enough.

    Raises:
        BackendError: if not, with the counts.
    """
    if precision == "as-is":
        return
    if layers.precision == _NAMES[precision]:
        if layers.of == "engine" and not layers.all.get(_NAMES[precision]):
            counts = ", ".join(f"{count} in {name}" for name, count in layers.all.items())
            raise BackendError(f"nothing was written: the engine should be {precision}, and its layers are {counts}")
        return
    counts = ", ".join(f"{count} in {name}" for name, count in layers.products.items())
    hint = f"precision {MIXED if layers.precision == MIXED else layers.precision}"
    raise BackendError(
        f"nothing was written: the engine should be {precision}, and its matrix products are {counts} ({hint}); "
        f"use a float32 file of mineral-export onnx, or accept it with --precision as-is"
    )


def _convert(source: Path, scratch: Path, precision: Precision, check: _Check) -> Path:
    """Return a file whose graph has the precision: the source itself, or a converted copy."""
    numerics = read_contract(source).numerics
    if precision != "fp16" or numerics.precision == "float16":
        return source
    if numerics.is_quantized:
        raise BackendError(f"{source} is {numerics.precision} already: build it with --precision as-is")
    from mineral_export.precision.fp16 import to_fp16

    budget = check.budget("float16")
    return to_fp16(source, scratch, samples=check.samples(), budget=budget, force=check.force).path


def _why_not_here(record: EngineRecord, gpu: Gpu | None) -> str:
    """Say why the engine cannot run on this machine; empty if it can."""
    if gpu is None:
        return "this machine has no GPU"
    if not fits_chip(record, gpu):
        return f"{gpu.name} has compute capability {gpu.compute_capability}"
    return ""


def _compare(source: Path, plan: bytes, record: EngineRecord, check: _Check, progress: Progress | None) -> Parity:
    """Compare the engine's output with the source's."""
    samples = check.samples()
    if progress:
        samples = samples.with_progress(progress, "comparing")
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        path = Path(folder, "model.plan")
        write_engine(path, plan, record)
        with open_artifact(source) as one, open_artifact(path) as other:
            return compare(one.predict, other.predict, samples, record.contract)


def _accept_unchecked(error: BackendError, *, force: bool) -> str:
    """Return why there is no comparison, if the user accepts the engine without one.

    Raises:
        BackendError: if not.
    """
    if force:
        return str(error)
    raise BackendError(
        f"nothing was written, because the engine could not be compared with its model: {error}; add --force to "
        f"write it anyway"
    ) from error
