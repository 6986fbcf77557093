"""An ONNX file becomes a TensorRT engine of the precision asked for and with its answers, or none is written."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mineral_batch.cuda.probe import first_gpu
from mineral_batch.engines.tensorrt.build import MIXED, Network, require_buildable
from mineral_batch.engines.tensorrt.library import load_library
from mineral_batch.engines.tensorrt.open import describe
from mineral_batch.engines.tensorrt.plan import SUFFIXES, EngineRecord, fits_chip, sidecar_path, write_engine
from mineral_batch.errors import BackendError, DataError
from mineral_batch.model.onnx_file import graph_digest, read_contract
from mineral_export.verify import parity as verify
from mineral_export.verify.artefacts import open_artefact
from mineral_export.verify.gate import require_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_batch.cuda.probe import Gpu
    from mineral_batch.engines.tensorrt.build import Built, Layers, Options, Progress
    from mineral_export.verify.parity import Budget, Parity, Samples

Precision = Literal["fp16", "fp32", "as-is"]
_NAMES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Engine:
    """A written engine.

    Attributes:
        path: of the plan.
        size: bytes.
        record: its description.
        parity: how far its answers lie from the source's; None where they were not compared.
        why_not: compared, in words; empty if they were.
    """

    path: Path
    size: int
    record: EngineRecord
    parity: Parity | None
    why_not: str = ""


@dataclass(frozen=True)
class _Proof:
    """What the user asks of the answers."""

    pictures: Callable[[], Samples]
    points: float | None
    force: bool

    def budget(self, precision: str) -> Budget:
        return verify.budget_of(precision, self.points)


def export_engine(
    source: Path,
    target: Path,
    options: Options,
    *,
    precision: Precision = "fp16",
    runtime: str | None = None,
    pictures: Callable[[], Samples] | None = None,
    points: float | None = None,
    force: bool = False,
    rebuild: str | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build a TensorRT engine of an ONNX file, with a description beside it.

    Where this machine's GPU is one that the engine is for, its answers are compared with the source's, by ONNX
    Runtime's CPU engine, before it gets its name.

    Args:
        source: written by `mineral-export`; float32, or already in the precision asked for.
        target: `.plan` or `.engine`; the description is TARGET.json.
        options: of the build.
        precision: of the matrix products: `fp16` converts a float32 file first, `as-is` takes any file as it is.
        runtime: `tensorrt` or `tensorrt-rtx`; None for whichever is installed.
        pictures: makes what is compared on, for the conversion and for the engine; None for synthetic ones.
        points: of mAP that may be lost; None for the budget of the precision.
        force: write an engine that is beyond the budget, or that this machine's GPU does not run.
        rebuild: the command that did this, for the description; None for one made from the other arguments.
        progress: called while building and comparing.

    Raises:
        BackendError: if TensorRT or, where it needs one, a GPU is missing, it refuses the graph, the engine is not of
            the precision asked for, or does not run on the GPU that it is for; nothing is written.
        ParityError: if the answers differ by more than the budget; nothing is written.
        ContractError: if the source is no model with a contract.
        DataError: if the target cannot be written.
    """
    if target.suffix not in SUFFIXES:
        raise DataError(f"{target} is no name for an engine: end it in {' or '.join(SUFFIXES)}")
    contract = read_contract(source)
    for path in (target, sidecar_path(target)):  # before minutes of work
        require_place(path)
    proof = _Proof(pictures or partial(verify.samples, contract), points, force)
    gpu = first_gpu()
    built, record = _built(source, target, options, precision, runtime, gpu, proof, progress)
    record = replace(record, rebuild=rebuild or f"{record.rebuild} --precision {precision}")
    parity, why_not = None, _not_here(record, gpu)
    if not why_not:
        try:
            parity = _compared(source, built.plan, record, proof, progress)
        except BackendError as error:
            why_not = _may_be_told(error, force=force)
    if parity and not force:
        parity.require(proof.budget(verify.least_exact((record.precision, *record.products))))
    record = replace(record, compared=str(parity or ""))
    write_engine(target, built.plan, record)
    return Engine(target, len(built.plan), record, parity, why_not)


def _built(
    source: Path,
    target: Path,
    options: Options,
    precision: Precision,
    runtime: str | None,
    gpu: Gpu | None,
    proof: _Proof,
    progress: Progress | None,
) -> tuple[Built, EngineRecord]:
    """The engine in memory, of the precision; what it takes to build one is given back at the end."""
    library = load_library(runtime)
    require_buildable(library, options)
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        typed = _typed(source, Path(folder, source.name), precision, proof)
        network = Network(library, typed)
        require_precision(network.layers(), precision)
        built = network.build(options, progress)
        require_precision(built.layers, precision)
        record = describe(built, typed, target, library, options, gpu)
    # The graph that the user has, so that a later change of it is noticed.
    return built, replace(record, onnx_sha256=graph_digest(source))


def require_precision(layers: Layers, precision: Precision) -> None:
    """Every convolution and matrix product must be of the precision asked for.

    An engine's layers are fused and have no names by which to tell a product: there must be one of the precision.

    Raises:
        BackendError: if one is not, with the counts.
    """
    if precision == "as-is":
        return
    if layers.precision == _NAMES[precision]:
        if layers.of == "engine" and not layers.all.get(_NAMES[precision]):
            counts = ", ".join(f"{count} in {name}" for name, count in layers.all.items())
            raise BackendError(f"nothing was written: asked for {precision}, and the engine's layers are {counts}")
        return
    counts = ", ".join(f"{count} in {name}" for name, count in layers.products.items())
    hint = f"precision {MIXED if layers.precision == MIXED else layers.precision}"
    raise BackendError(
        f"nothing was written: asked for {precision}, and of the matrix products are {counts} ({hint}); "
        f"give a float32 file from mineral-export onnx, or take it with --precision as-is"
    )


def _typed(source: Path, scratch: Path, precision: Precision, proof: _Proof) -> Path:
    """A file whose graph is of the precision: the source itself, or a converted copy."""
    numerics = read_contract(source).numerics
    if precision != "fp16" or numerics.precision == "float16":
        return source
    if numerics.is_quantized:
        raise BackendError(f"{source} is {numerics.precision} already: build it with --precision as-is")
    from mineral_export.precision.fp16 import to_fp16

    budget = proof.budget("float16")
    return to_fp16(source, scratch, pictures=proof.pictures(), budget=budget, force=proof.force).path


def _not_here(record: EngineRecord, gpu: Gpu | None) -> str:
    """Why the engine cannot be run on this machine; empty if it can."""
    if gpu is None:
        return "this machine has no GPU"
    if not fits_chip(record, gpu):
        return f"{gpu.name} has compute capability {gpu.compute_capability}"
    return ""


def _compared(source: Path, plan: bytes, record: EngineRecord, proof: _Proof, progress: Progress | None) -> Parity:
    """The engine's answers beside the source's."""
    pictures = proof.pictures()
    if progress:
        pictures = pictures.counted(progress, "comparing")
    with tempfile.TemporaryDirectory(prefix="mineral-export-") as folder:
        path = Path(folder, "model.plan")
        write_engine(path, plan, record)
        with open_artefact(source) as one, open_artefact(path) as other:
            return verify.compare(one.answers, other.answers, pictures, record.contract)


def _may_be_told(error: BackendError, *, force: bool) -> str:
    """The reason for no comparison, where the user takes the engine without one.

    Raises:
        BackendError: where not.
    """
    if force:
        return str(error)
    raise BackendError(
        f"nothing was written, because the engine could not be compared with its model: {error}; --force writes it all "
        f"the same"
    ) from error
