"""Our engines: by batch, over folders, with decoding on the GPU, and their kernels."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from mineral_bench.gpu import subjects
from mineral_bench.gpu.clock import by_batch
from mineral_bench.gpu.end_to_end import measure_folders
from mineral_bench.gpu.packages import is_there
from mineral_bench.gpu.record import read_record
from mineral_bench.gpu.runners import onnx_runtime
from mineral_bench.gpu.runners.kernels import kernels as kernel_shares
from mineral_bench.gpu.stages.rows import ENGINE, backends, folder_rows, row_of, runners_of, try_row, tuned_runners
from mineral_bench.gpu.stages.verify import compare_with_float32

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_bench.gpu.clock import Runner
    from mineral_bench.gpu.record import Record
    from mineral_bench.gpu.settings import Settings


def engines(settings: Settings, record: Record) -> None:
    """Measure our engines by batch with CUDA events, the images already on the GPU; and find the better graph."""
    graphs = settings.graphs()
    kinds = {words: runners_of(record, model, "FP16", words) for words, model in graphs.items()}
    few = settings.sizes.few_batches
    for words in graphs:
        for engine in backends(settings):
            rows = (f"{row_of(engine)}{words}", f"{engine}, images in memory{words}")
            record.judged_by(f"{engine}{words}", rows, "verify")
    by_batch(settings, record, {name: way for ways in kinds.values() for name, way in ways.items()}, few)
    better = _better(settings, record, list(graphs))
    if record.has(f"{ENGINE}{better}"):
        record.save(better=f"{ENGINE}{better}", better_graph=better)
    alone = {f"{engine}, images in memory{better}": _alone(graphs[better], engine) for engine in backends(settings)[:1]}
    by_batch(settings, record, alone, few[:1])
    by_batch(settings, record, kinds[better])
    by_batch(settings, record, tuned_runners(graphs[better], better), few)


def _alone(model: Path, engine: str) -> Runner:
    return partial(onnx_runtime.backend_alone, model=model, engine=engine)


def _better(settings: Settings, record: Record, graphs: list[str]) -> str:
    """Return the faster of the graphs whose output is right."""
    verified = read_record(settings.out, "verify")
    wrong = [
        words for words in graphs for name in backends(settings)[:1] if "failed" in verified.get(f"{name}{words}", {})
    ]
    candidates = [words for words in graphs if words not in wrong] or graphs
    return max(candidates, key=lambda words: max(record.values.get(f"{ENGINE}{words}", {}).values(), default=0))


def end_to_end(settings: Settings, record: Record) -> None:
    """Measure `predict` over folders of JPEGs, from files to probabilities, the better graph first."""
    better = read_record(settings.out, "engines").get("better_graph", "")
    graphs = sorted(settings.graphs().items(), key=lambda graph: graph[0] != better)
    for engine in backends(settings):
        for words, model in graphs:
            beside = f"{row_of(engine)}{words}"
            options = {"model": model, "backend": engine}
            record.judged_by(f"{engine}{words}", folder_rows(settings, f"{engine}{words}"), "verify")
            measure_folders(settings, record, f"{engine}{words}", settings.sizes.photos, beside=beside, **options)


def starter(settings: Settings, record: Record) -> None:
    """Measure the model that comes with the package: FP16, verified, by batch and end to end."""
    from mineral_batch.model.starter import starter_path
    from mineral_export.precision.fp16 import to_fp16

    settings.models.mkdir(exist_ok=True)
    half = settings.model("float16", "starter")
    if not (half.is_file() and record.has("parity_on_the_cpu")):
        exported = to_fp16(starter_path(), half, force=True)
        record.save(float16_mb=exported.size / 1e6, parity_on_the_cpu=str(exported.parity))
    with suppress(ValueError):  # without it there is no share of the ceiling
        record.save(gflop_per_picture=subjects.gflop(half))
    for engine in backends(settings):
        compare_with_float32(settings, record, f"starter on {engine}", f"{half}@{engine}", "float16", starter_path())
        rows = (f"starter, {row_of(engine)}", *folder_rows(settings, f"starter, {engine}"))
        record.judged_by(f"starter on {engine}", rows)
    ways = runners_of(record, half, "FP16", before="starter, ") | tuned_runners(half, before="starter, ")
    by_batch(settings, record, ways, settings.sizes.few_batches)
    for engine in backends(settings):
        options: dict[str, Any] = {"beside": f"starter, {row_of(engine)}", "model": half, "backend": engine}
        measure_folders(settings, record, f"starter, {engine}", settings.sizes.photos, **options)


def decoding(settings: Settings, record: Record) -> None:
    """Measure `predict` with JPEGs decoded on the GPU, and with the decoder chosen by measurement."""
    engine = backends(settings)[0]
    can_decode = not settings.sizes.dry and is_there("nvidia.nvimgcodec")
    for folder in reversed(settings.sizes.photos):  # it is made for large ones
        for decode in ("gpu", "auto"):
            name = f"{engine}, decode {decode}"
            record.judged_by(engine, [f"{name}, {folder}"], "verify")
            if decode == "gpu" and not can_decode:
                record.left_out(f"{name}, {folder}", "there is no GPU with nvImageCodec")
                continue
            options = {"model": settings.model("float16"), "backend": engine, "decode": decode}
            measure_folders(settings, record, name, [folder], beside=row_of(engine), **options)


def kernels(settings: Settings, record: Record) -> None:
    """Profile both FP16 graphs: which kernels take the GPU's time."""
    for words, model in settings.graphs().items():
        if settings.sizes.dry:
            record.left_out(f"kernels{words}", "there is no GPU in a dry run")
        else:
            try_row(record, f"kernels{words}", partial(kernel_shares, settings, settings.sizes.few_batches[0], model))
