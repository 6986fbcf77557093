"""The stages of the GPU run. Each saves after every measurement, so that what it has measured outlives it."""

from __future__ import annotations

import importlib
import math
import shutil
import traceback
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ceilings
import clock
import common
import machine
import packages
import subjects
from common import Record, Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from clock import Maker

#: Name of our row of ONNX Runtime; the engine of `predict` and its precision.
ENGINE = "ONNX Runtime CUDA FP16"


def run(name: str, settings: Settings) -> int:
    """Do one stage in this process; 1 if it, or anything that it measures, did not work."""
    if name != "install":
        with suppress(ImportError, OSError):
            import torch  # noqa: F401 - brings CUDA and cuDNN, which ONNX Runtime needs too
    record = Record(settings, name)
    try:
        globals()[f"stage_{name}"](settings, record)
        record.require_success()
    except Exception as error:
        traceback.print_exc()
        record.end(error)
        return 1
    return 0


def stage_install(settings: Settings, record: Record) -> None:
    """Unpack what was brought along into OUT/site, nothing is fetched; then say what is missing.

    Raises:
        RuntimeError: naming what the other stages need and do not find.
    """
    installed = [name for name in record.values.get("installed", []) if packages.is_unpacked(settings, name)]
    broken: dict[str, str] = {}
    record.save(installed=installed, failed=broken)  # before there is a folder again, in which nothing is
    settings.site.mkdir(exist_ok=True)
    for name in packages.brought(settings):
        if name in installed:
            continue
        try:
            packages.unpack(settings, name)
        except packages.ERRORS as error:
            record.count_failure(name, error)
            broken[name] = common.line(error)
        else:
            installed.append(name)
        record.save(installed=installed, failed=broken)
    importlib.invalidate_caches()
    missing = packages.missing(is_dry=settings.sizes.dry)
    record.save(installed=installed, failed=broken, missing=missing, left_out=packages.left_out())
    record.save(onnxruntime=packages.imported_onnxruntime())
    if missing:
        raise RuntimeError(f"bring these along in --wheels (README.md says how): {', '.join(missing)}")


def stage_chip(settings: Settings, record: Record) -> None:
    """The ceilings, matrix products and copies; the native backend without an engine; what is installed."""
    record.save(machine=machine.described() | _by_torch(settings), packages=packages.versions())
    ceilings.matrix_products(settings.sizes, record)
    ceilings.copies(settings.sizes, record)
    ceilings.native_backend(settings.sizes, record, through="driver")


def _by_torch(settings: Settings) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = dict(settings.where)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"compute_capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        with suppress(Exception):
            from mineral_batch.cuda.probe import cuda_version

            found["driver_runs_cuda"] = cuda_version()
    return found


def stage_photographs(settings: Settings, record: Record) -> None:
    """Folders of JPEGs of a data set's size and of a camera's."""
    subjects.photographs(settings)
    record.save(photographs={name: f"{count} JPEGs" for name, count in settings.sizes.photos.items()})


def stage_models(settings: Settings, record: Record) -> None:
    """The paper's model with random weights as ONNX in float32 and in FP16, and what it computes.

    Raises:
        ArithmeticError: in a dry run, if the operations of the graph are not those that torch counts.
    """
    from mineral_export.onnx.export import export_onnx
    from mineral_export.precision.fp16 import to_fp16

    settings.models.mkdir(exist_ok=True)
    model, contract = subjects.deployable(settings.sizes)
    plain = settings.model("float32")
    if not (record.has("float32_parity") and plain.is_file()):
        made = export_onnx(model.model, contract, plain, force=True)
        record.save(float32_mb=made.size / 1e6, float32_parity=str(made.parity))
    counted, in_graph = _counted_by_torch(model, contract), subjects.gflop(plain)
    record.save(gflop_per_picture=in_graph, gflop_counted_by_torch=counted, input=list(contract.input.shape))
    if settings.sizes.dry and not math.isclose(counted, in_graph, rel_tol=1e-6):
        raise ArithmeticError(f"torch counts {counted} GFLOP a picture, the graph has {in_graph}")
    half = to_fp16(plain, settings.model("float16"), force=True)
    record.save(float16_mb=half.size / 1e6, float16_parity_on_the_cpu=str(half.parity))


def _counted_by_torch(model: Any, contract: Any) -> float:
    """Billions of operations of one picture; attention as the products that it is, since fused it counts as nothing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(subjects.noise(contract, 1, "cpu"))
    return counter.get_total_flops() / 1e9


def stage_attention(settings: Settings, record: Record) -> None:
    """The same model with each attention of the backbone as one operator (opset 23), which engines have kernels for.

    Raises:
        RuntimeError: if the graph has no such operator.
    """
    import onnx

    from mineral_export import NEWEST_OPSET
    from mineral_export.onnx.export import export_onnx
    from mineral_export.precision.fp16 import to_fp16

    model, contract = subjects.deployable(settings.sizes)
    name = common.GRAPHS[", Attention nodes"]
    plain = settings.model("float32", name)
    made = export_onnx(model.model, contract, plain, opset=NEWEST_OPSET, force=True)
    record.save(float32_parity=str(made.parity))
    half = to_fp16(plain, settings.model("float16", name), force=True)
    nodes = [node.op_type for node in onnx.load(half.path, load_external_data=False).graph.node]
    record.save(float16_parity_on_the_cpu=str(half.parity), attention_nodes=nodes.count("Attention"))
    if "Attention" not in nodes:
        half.path.unlink()
        raise RuntimeError("the exporter wrote no Attention operator")


def stage_verify(settings: Settings, record: Record) -> None:
    """Both FP16 graphs on each engine against float32 ONNX on the CPU."""
    for engine in common.engines(settings):
        for words, model in settings.graphs().items():
            _verify(settings, record, f"{engine}{words}", f"{model}@{engine}", "float16")


def _verify(
    settings: Settings, record: Record, name: str, other: str, precision: str, reference: Path | None = None
) -> None:
    """Save how far an artefact's answers lie from a float32 file's on the CPU; beyond the budget it has failed.

    Args:
        settings: of the run.
        record: of the stage.
        name: of the row.
        other: as `open_artefact` takes it.
        precision: whose budget it is.
        reference: the float32 file; None for the paper's model with random weights.
    """
    from mineral_export.verify import parity as verify
    from mineral_export.verify.artefacts import open_artefact

    if record.has(name):
        return
    budget, told = verify.budget_of(precision), {}
    if reference is None:  # random weights decide nothing: at a threshold a hair's breadth makes another decision
        budget = replace(budget, changed=1.0)
    try:
        with (
            open_artefact(f"{reference or settings.model('float32')}@onnx-cpu") as one,
            open_artefact(other) as two,
        ):
            pixels, what = subjects.pictures(settings, one.contract, 64 if settings.photos else settings.sizes.verified)
            parity = verify.compare(one.answers, two.answers, verify.Samples.of(pixels, what), one.contract)
        told = {"parity": str(parity), "within_budget": not parity.beyond(budget)}
        if parity.beyond(budget):
            raise ValueError(f"answers beyond the budget: {'; '.join(parity.beyond(budget))}")
        record.save(**{name: told})
    except Exception as error:  # the others are still to be verified
        record.failed(name, error, **told)


def stage_engines(settings: Settings, record: Record) -> None:
    """Throughput of our engines by batch, by CUDA events, the pictures already on the GPU; and the better graph."""
    graphs = settings.graphs()
    kinds = {words: _kinds(record, model, "FP16", words) for words, model in graphs.items()}
    few = settings.sizes.few_batches
    for words in graphs:
        for engine in common.engines(settings):
            rows = (f"{_row(engine)}{words}", f"{engine}, pictures in memory{words}")
            record.judged_by(f"{engine}{words}", rows, "verify")
    clock.by_batch(settings, record, {name: way for ways in kinds.values() for name, way in ways.items()}, few)
    better = _better(settings, record, list(graphs))
    if record.has(f"{ENGINE}{better}"):
        record.save(better=f"{ENGINE}{better}", better_graph=better)
    alone = {f"{engine}, pictures in memory{better}": _alone(graphs[better], engine) for engine in _engines(settings)}
    clock.by_batch(settings, record, alone, few[:1])
    clock.by_batch(settings, record, kinds[better])


def _engines(settings: Settings) -> list[str]:
    return common.engines(settings)[:1]


def _alone(model: Path, engine: str) -> Maker:
    import runners

    return partial(runners.backend_alone, model=model, engine=engine)


def _better(settings: Settings, record: Record, graphs: list[str]) -> str:
    """Of the graphs, the one with the higher rate; one whose answers were found wrong is no candidate."""
    verified = common.read(settings.out, "verify")
    wrong = [words for words in graphs for name in _engines(settings) if "failed" in verified.get(f"{name}{words}", {})]
    candidates = [words for words in graphs if words not in wrong] or graphs
    return max(candidates, key=lambda words: max(record.values.get(f"{ENGINE}{words}", {}).values(), default=0))


def _kinds(record: Record, model: Path, precision: str, words: str = "", before: str = "") -> dict[str, Maker]:
    """The ways to run an ONNX file by the names of their rows; what is not installed is left out, and said so."""
    import runners

    ours: dict[str, Maker] = {}
    if precision == "FP16":
        ours[f"{before}{ENGINE}{words}"] = partial(runners.onnx_runtime, model=model)
    theirs = {
        f"{before}ONNX Runtime TensorRT {precision}{words}": partial(runners.onnx_tensorrt, model=model),
        f"{before}TensorRT {precision}{words}": partial(runners.tensorrt, model=model),
    }
    if common.has_tensorrt():
        return {**ours, **theirs}
    for name in theirs:
        record.left_out(f"{name} ended", "TensorRT is not installed")
    return ours


def stage_end_to_end(settings: Settings, record: Record) -> None:
    """`predict` over folders of JPEGs, the better graph first: files to probabilities."""
    better = common.read(settings.out, "engines").get("better_graph", "")
    graphs = sorted(settings.graphs().items(), key=lambda graph: graph[0] != better)
    for engine in common.engines(settings):
        for words, model in graphs:
            beside = f"{_row(engine)}{words}"
            options = {"model": model, "backend": engine}
            record.judged_by(f"{engine}{words}", _over_folders(settings, f"{engine}{words}"), "verify")
            clock.end_to_end(settings, record, f"{engine}{words}", settings.sizes.photos, beside=beside, **options)


def _over_folders(settings: Settings, name: str) -> list[str]:
    """The rows of one engine over all folders."""
    return [f"{name}, {folder}" for folder in settings.sizes.photos]


def _row(engine: str) -> str:
    """The row of a backend's rate on the device."""
    return "TensorRT FP16" if engine == "tensorrt" else ENGINE


def stage_starter(settings: Settings, record: Record) -> None:
    """The model that comes with the package: FP16, verified, by batch and end to end."""
    from mineral_batch.model.starter import starter_path
    from mineral_export.precision.fp16 import to_fp16

    settings.models.mkdir(exist_ok=True)
    half = settings.model("float16", "starter")
    if not (half.is_file() and record.has("parity_on_the_cpu")):
        made = to_fp16(starter_path(), half, force=True)
        record.save(float16_mb=made.size / 1e6, parity_on_the_cpu=str(made.parity))
    with suppress(ValueError):  # without it there is no share of the ceiling
        record.save(gflop_per_picture=subjects.gflop(half))
    for engine in common.engines(settings):
        _verify(settings, record, f"starter on {engine}", f"{half}@{engine}", "float16", starter_path())
        rows = (f"starter, {_row(engine)}", *_over_folders(settings, f"starter, {engine}"))
        record.judged_by(f"starter on {engine}", rows)
    clock.by_batch(settings, record, _kinds(record, half, "FP16", before="starter, "), settings.sizes.few_batches)
    for engine in common.engines(settings):
        options: dict[str, Any] = {"beside": f"starter, {_row(engine)}", "model": half, "backend": engine}
        clock.end_to_end(settings, record, f"starter, {engine}", settings.sizes.photos, **options)


def stage_decoding(settings: Settings, record: Record) -> None:
    """The same with the JPEGs decoded on the GPU, and with the choice left to measurement."""
    engine = common.engines(settings)[0]
    can_decode = not settings.sizes.dry and common.is_there("nvidia.nvimgcodec")
    for folder in reversed(settings.sizes.photos):  # big ones are what it is for
        for decode in ("gpu", "auto"):
            name = f"{engine}, decode {decode}"
            record.judged_by(engine, [f"{name}, {folder}"], "verify")
            if decode == "gpu" and not can_decode:
                record.left_out(f"{name}, {folder}", "there is no GPU with nvImageCodec")
                continue
            options = {"model": settings.model("float16"), "backend": engine, "decode": decode}
            clock.end_to_end(settings, record, name, [folder], beside=_row(engine), **options)


def stage_peers(settings: Settings, record: Record) -> None:
    """What people use otherwise, in the same run: on the device by batch, and end to end with a DataLoader."""
    import runners

    few = settings.sizes.few_batches
    ways: dict[str, Maker] = {f"torch eager, {name}": partial(runners.on_device, is_half=half) for name, half in _KINDS}
    clock.by_batch(settings, record, ways, few)
    for folder in settings.sizes.photos:
        _loaded(settings, record, f"DataLoader + torch eager, half, {folder}", folder, is_half=True)
    _loaded(settings, record, "DataLoader + torch eager, AMP, 384", "384", is_half=False)
    if settings.model("float16").is_file():
        plain: dict[str, Maker] = {
            "ONNX Runtime as it comes, FP16": partial(runners.as_it_comes, model=settings.model("float16"))
        }
        clock.by_batch(settings, record, plain, few)
    else:
        record.left_out("ONNX Runtime as it comes, FP16 ended", "needs the stage models")


#: Of PyTorch's weights: name of the row, and whether they are FP16.
_KINDS = (("half", True), ("AMP", False))


def _loaded(settings: Settings, record: Record, row: str, folder: str, **options: bool) -> None:
    import runners

    _tried(record, row, partial(runners.data_loader, settings, folder, **options))


def stage_compiled(settings: Settings, record: Record) -> None:
    """torch.compile, which takes its time before the first answer: on the device by batch, and end to end."""
    import runners

    few = settings.sizes.few_batches
    half, amp = (
        {f"torch.compile, {name}": partial(runners.on_device, is_half=is_half, is_compiled=True)}
        for name, is_half in _KINDS
    )
    clock.by_batch(settings, record, half, few[:1])
    _loaded(settings, record, "DataLoader + torch.compile, half, 384", "384", is_half=True, is_compiled=True)
    clock.by_batch(settings, record, half, few)
    clock.by_batch(settings, record, amp, few[:1])
    if common.is_there("torch_tensorrt"):
        clock.by_batch(settings, record, {"torch-tensorrt": runners.torch_tensorrt}, few[:1])
    else:
        record.left_out("torch-tensorrt ended", "it is not installed")


def stage_kernels(settings: Settings, record: Record) -> None:
    """What both FP16 graphs spend the GPU's time on."""
    import runners

    for words, model in settings.graphs().items():
        if settings.sizes.dry:
            record.left_out(f"kernels{words}", "there is no GPU in a dry run")
        else:
            _tried(record, f"kernels{words}", partial(runners.kernels, settings, settings.sizes.few_batches[0], model))


def _tried(record: Record, row: str, measure: Callable[[], Any]) -> None:
    """Save what is measured, or why it is not: the others are still to be measured."""
    if record.has(row):
        return
    try:
        record.save(**{row: measure()})
    except Exception as error:
        record.failed(row, error)


def stage_rtx(settings: Settings, record: Record) -> None:
    """One attempt at an engine of TensorRT for RTX for this chip: it has no target for every one."""
    from mineral_batch.engines.tensorrt.build import Options
    from mineral_batch.engines.tensorrt.plan import Profile
    from mineral_batch.errors import MineralError
    from mineral_export.tensorrt import export_engine

    batch, target = settings.sizes.few_batches[0], settings.models / "rtx.plan"
    # Without a GPU it builds for one that is not there, and cannot be run.
    options = Options(Profile(batch, batch, batch), ("8.9",) if settings.sizes.dry else ())
    try:
        made = export_engine(settings.model("float16"), target, options, runtime="tensorrt-rtx", force=True)
    except MineralError as error:  # what it says is the result
        record.save(said=common.line(error))
        return
    record.values.pop("said", None)  # by an attempt before
    record.save(built=f"{made.size / 1e6:.1f} MB for {', '.join(made.record.compute_capabilities)}")
    record.save(products=dict(made.record.products), layers=dict(made.record.layers))
    record.save(compared=str(made.parity) if made.parity else f"not compared: {made.why_not}")
    if made.parity:  # it runs here
        _verify(settings, record, "tensorrt-rtx", str(target), "float16")
        record.judged_by("tensorrt-rtx", ["tensorrt-rtx, 384"])
        clock.end_to_end(settings, record, "tensorrt-rtx", ["384"], model=target, backend="tensorrt")


def stage_quantised(settings: Settings, record: Record) -> None:
    """INT8 and FP8 of the paper's model: the graph, its answers, and its rate, where TensorRT is."""
    from mineral_batch.errors import MineralError

    if not (settings.sizes.dry or common.has_tensorrt()):
        for precision in ("int8", "float8"):
            record.left_out(f"{precision}_graph", "TensorRT is not installed, which alone runs it in its types")
        return
    for precision, make in {"int8": _int8, "float8": _float8}.items():
        target, row = settings.model(precision), f"{precision}_graph"
        if not target.is_file():
            try:
                record.save(**{row: make(settings, target)})
            except MineralError as error:  # such as what is not installed
                record.save(**{row: f"not there: {common.line(error)}"})
                continue
            except Exception as error:  # the other precision is still to be tried
                record.failed(row, error)
                continue
        elif not record.has(row) or str(record.values[row]).startswith("not there"):
            record.save(**{row: f"there already, {target.stat().st_size / 1e6:.0f} MB"})
        if settings.sizes.dry:
            record.left_out(f"{precision}_engine", "there is no GPU in a dry run")
            continue
        _verify(settings, record, f"tensorrt {precision}", f"{target}@tensorrt", precision)
        words = {"int8": "INT8", "float8": "FP8"}[precision]
        record.judged_by(f"tensorrt {precision}", [f"TensorRT {words}"])
        clock.by_batch(settings, record, _kinds(record, target, words), settings.sizes.few_batches)


def _int8(settings: Settings, target: Path) -> str:
    """By nncf, or as it was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    from mineral_export.precision.int8 import to_int8

    pixels, what = _calibration(settings)
    made = to_int8(settings.model("float32"), target, pixels, for_engine="tensorrt", force=True)
    return _said(made, len(pixels), what)


def _float8(settings: Settings, target: Path) -> str:
    """By ModelOpt, or as it was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    from mineral_export.precision.fp8 import to_fp8

    pixels, what = _calibration(settings)
    return _said(to_fp8(settings.model("float32"), target, pixels, force=True), len(pixels), what)


def _said(made: Any, count: int, what: str) -> str:
    """Of a quantised graph."""
    return (
        f"{made.exported.size / 1e6:.0f} MB, {made.rounded} of {made.layers} layers, the rest {made.rest}, calibrated "
        f"with {count} {what}: {made.exported.parity}"
    )


def _brought_graph(settings: Settings, target: Path) -> str:
    """A graph of the same weights, quantised elsewhere: put where it belongs; empty if there is none."""
    for folder in (settings.wheels, settings.out):  # the second holds what came in pieces
        if folder is not None and (folder / target.name).is_file():
            shutil.copyfile(folder / target.name, target)
            return f"brought along, {target.stat().st_size / 1e6:.0f} MB"
    return ""


def _calibration(settings: Settings) -> tuple[Any, str]:
    from mineral_batch.model.onnx_file import read_contract

    return subjects.pictures(settings, read_contract(settings.model("float32")), settings.sizes.calibration)


def stage_pycuda(settings: Settings, record: Record) -> None:
    """Compile what was brought along as source, which takes minutes; then the native backend through pycuda."""
    settings.site.mkdir(exist_ok=True)
    for source in packages.sources(settings):
        if not (record.has(source.name) and settings.is_compiled(record.values[source.name])):
            try:
                record.save(**{source.name: {"compiled": packages.build(source, settings.site)}})
            except packages.ERRORS as error:
                record.failed(source.name, RuntimeError(packages.why(error)))
    importlib.invalidate_caches()
    if common.is_there("pycuda"):
        ceilings.native_backend(settings.sizes, record, through="pycuda")
    else:
        record.left_out("native_backend_through_pycuda", "pycuda is not installed")
