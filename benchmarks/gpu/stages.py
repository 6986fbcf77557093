"""The stages of the GPU run. Each saves after every measurement, so that what it has measured outlives it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ceilings
import common
from common import Record, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PIECE = ".part00"

#: Modules that the stages need -> the package to bring along where the machine has none.
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "numpy": "numpy",
    "PIL": "pillow",
    "tqdm": "tqdm",
    "onnxruntime": "onnxruntime-gpu",
}
#: Modules without which a part of a stage is left out -> what that is.
OPTIONAL = {
    "tensorrt": "engines of TensorRT: FP16, INT8 and FP8",
    "tensorrt_rtx": "the attempt with TensorRT for RTX",
    "pycuda": "CUDA through pycuda in the native backend, which goes through the driver's library instead",
    "torch_tensorrt": "torch-tensorrt as a peer",
    "nvidia.nvimgcodec": "decoding on the GPU",
    "nncf": "the INT8 graph, unless paper-int8.onnx is brought along",
    "modelopt": "the FP8 graph, unless paper-float8.onnx is brought along",
}


def run(name: str, settings: Settings) -> None:
    """Do one stage in this process."""
    globals()[f"stage_{name}"](settings, Record(settings, name))


def stage_install(settings: Settings, record: Record) -> None:
    """Unpack what was brought along into OUT/site, nothing is fetched; then say what is missing.

    Raises:
        RuntimeError: naming what the other stages need and do not find.
    """
    site = settings.out / "site"
    site.mkdir(exist_ok=True)
    installed: list[str] = list(record.values.get("installed", []))
    failed: dict[str, str] = {}
    for file in _brought(settings):
        if file.name in installed:
            continue
        try:
            _install(file, site)
            installed.append(file.name)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, lzma.LZMAError) as error:
            failed[file.name] = str(getattr(error, "stderr", "") or error).strip()[-300:]
        record.save(installed=installed, failed=failed)
    importlib.invalidate_caches()
    missing = [package for module, package in NEEDED.items() if not _is_there(module)]
    left_out = {module: what for module, what in OPTIONAL.items() if not _is_there(module)}
    record.save(installed=installed, failed=failed, missing=missing, left_out=left_out)
    if missing:
        raise RuntimeError(f"bring these along in --wheels (README.md says how): {', '.join(missing)}")


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it
        return False


def _brought(settings: Settings) -> Iterator[Path]:
    """Wheels, archives and sdists, these last; NAME.part00, NAME.part01, ... are put together first."""
    if settings.wheels is None:
        return
    for first in sorted(settings.wheels.glob(f"*{_PIECE}")):
        whole = settings.out / first.name.removesuffix(_PIECE)
        with whole.open("wb") as file:
            for piece in sorted(settings.wheels.glob(f"{whole.name}.part*")):
                file.write(piece.read_bytes())
        yield whole
    for suffix in (".whl", ".tar.xz", ".tar.gz"):
        yield from sorted(settings.wheels.glob(f"*{suffix}"))


def _install(file: Path, site: Path) -> None:
    if file.suffix == ".onnx":  # it only had to be put together
        return
    if file.name.endswith(".tar.xz"):
        with tarfile.open(file) as archive:
            archive.extractall(site, filter="data")
        return
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
    # Files that the user brought along.
    subprocess.run([*command, "--target", str(site), str(file)], check=True, capture_output=True, text=True)  # noqa: S603


def stage_chip(settings: Settings, record: Record) -> None:
    """The ceilings, matrix products and copies; the native backend without an engine; what is installed."""
    record.save(machine=_machine(), packages=_packages())
    ceilings.matrix_products(settings.sizes, record)
    ceilings.copies(settings.sizes, record)
    ceilings.native_backend(settings.sizes, record)


def stage_models(settings: Settings, record: Record) -> None:
    """The paper's model with random weights as ONNX in float32 and in FP16, and what it computes."""
    from torch.utils.flop_counter import FlopCounterMode

    from mineral_export.fp16 import to_fp16
    from mineral_export.onnx import export_onnx

    common.photographs(settings)
    record.save(photographs={name: f"{count} JPEGs" for name, count in settings.sizes.photos.items()})
    settings.models.mkdir(exist_ok=True)
    model, contract = common.deployable(settings.sizes)
    with FlopCounterMode(display=False) as counter:
        model(common.noise(contract, 1, "cpu"))
    record.save(gflop_per_picture=counter.get_total_flops() / 1e9, input=list(contract.input.shape))
    if not record.has("float32_parity"):
        made = export_onnx(model.model, contract, settings.model("float32"), force=True)
        record.save(float32_mb=made.size / 1e6, float32_parity=str(made.parity))
    half = to_fp16(settings.model("float32"), settings.model("float16"), force=True)
    record.save(float16_mb=half.size / 1e6, float16_parity_on_the_cpu=str(half.parity))


def stage_verify(settings: Settings, record: Record) -> None:
    """FP16 on each engine against float32 ONNX on the CPU."""
    for engine in common.engines(settings):
        _verify(settings, record, engine, settings.model("float16"), "float16")


def _verify(settings: Settings, record: Record, name: str, model: Path, precision: str) -> None:
    """Save how far a file's answers on an engine lie from the float32 file's on the CPU."""
    from mineral_export import verify
    from mineral_export.artefacts import open_artefact

    if record.has(name):
        return
    engine = name.split(maxsplit=1)[0]
    try:
        with (
            open_artefact(f"{settings.model('float32')}@onnx-cpu") as one,
            open_artefact(f"{model}@{engine}") as other,
        ):
            pixels, what = common.pictures(settings, one.contract, 64 if settings.photos else 8)
            parity = verify.compare(one.answers, other.answers, verify.Samples.of(pixels, what), one.contract)
        beyond = parity.beyond(verify.BUDGETS[precision])
        record.save(**{name: {"parity": str(parity), "within_budget": not beyond}})
    except Exception as error:  # the others are still to be verified
        record.save(**{name: {"failed": common.line(error)}})


def stage_engines(settings: Settings, record: Record) -> None:
    """Throughput of our engines by batch, by CUDA events, the pictures already on the GPU."""
    common.by_batch(settings, record, _kinds(settings.model("float16"), "FP16"))


def _kinds(model: Path, precision: str) -> dict[str, Callable[..., Any]]:
    """The ways to run an ONNX file; those whose packages are absent say so when they are tried."""
    import runners

    runtime = {"ONNX Runtime": runners.onnx_runtime} if precision == "FP16" else {}
    makers = {**runtime, "ONNX Runtime TensorRT": runners.onnx_tensorrt, "TensorRT": runners.tensorrt}
    return {f"{name} {precision}": partial(make, model=model) for name, make in makers.items()}


def stage_starter(settings: Settings, record: Record) -> None:
    """The model that comes with the package: FP16, by batch and end to end."""
    from mineral_batch.models import starter_path
    from mineral_export.fp16 import to_fp16

    half = settings.model("float16", "starter")
    settings.models.mkdir(parents=True, exist_ok=True)
    if not (half.is_file() and record.has("parity_on_the_cpu")):
        made = to_fp16(starter_path(), half, force=True)
        record.save(float16_mb=made.size / 1e6, parity_on_the_cpu=str(made.parity))
    with suppress(ValueError):  # without it there is no share of the ceiling
        record.save(gflop_per_picture=common.gflop(half))
    kinds = {f"starter, {name}": make for name, make in _kinds(half, "FP16").items()}
    common.by_batch(settings, record, kinds, settings.sizes.few_batches)
    for engine in common.engines(settings):
        for folder in settings.sizes.photos:
            common.end_to_end(settings, record, f"starter, {engine}, {folder}", folder, model=half, backend=engine)


def stage_quantised(settings: Settings, record: Record) -> None:
    """INT8 and FP8 of the paper's model: the graph, its answers, and its rate where TensorRT is."""
    for precision, make in {"int8": _int8, "float8": _float8}.items():
        target = settings.model(precision)
        try:
            if not target.is_file():
                record.save(**{f"{precision}_graph": make(settings, target)})
        except Exception as error:  # the other precision is still to be tried
            record.save(**{f"{precision}_graph": f"not there: {common.line(error)}"})
            continue
        if settings.sizes.dry or not common.has_tensorrt():
            record.save(**{f"{precision}_engine": "not there: TensorRT runs such graphs in these types, others do not"})
            continue
        _verify(settings, record, f"tensorrt {precision}", target, precision)
        words = {"int8": "INT8", "float8": "FP8"}[precision]
        common.by_batch(settings, record, _kinds(target, words), settings.sizes.few_batches)


def _int8(settings: Settings, target: Path) -> str:
    """By nncf, or as it was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    from mineral_export.quantise import to_int8

    pixels, what = _calibration(settings)
    made = to_int8(settings.model("float32"), target, pixels, for_engine="tensorrt", force=True)
    return f"{made.exported.size / 1e6:.0f} MB, calibrated with {len(pixels)} {what}: {made.exported.parity}"


def _float8(settings: Settings, target: Path) -> str:
    """By ModelOpt, or as it was brought along."""
    if brought := _brought_graph(settings, target):
        return brought
    try:
        from mineral_export.fp8 import to_fp8  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        raise RuntimeError(f"{error}: this release writes no FP8 graphs") from None
    pixels, what = _calibration(settings)
    made = to_fp8(settings.model("float32"), target, pixels, force=True)
    made = getattr(made, "exported", made)
    return f"{made.size / 1e6:.0f} MB, calibrated with {len(pixels)} {what}: {made.parity}"


def _brought_graph(settings: Settings, target: Path) -> str:
    """A graph of the same weights, quantised elsewhere: put where it belongs; empty if there is none."""
    for folder in (settings.wheels, settings.out):  # the second holds what came in pieces
        if folder is not None and (folder / target.name).is_file():
            shutil.copyfile(folder / target.name, target)
            return f"brought along, {target.stat().st_size / 1e6:.0f} MB"
    return ""


def _calibration(settings: Settings) -> tuple[Any, str]:
    from mineral_batch._onnx_file import read_contract

    return common.pictures(settings, read_contract(settings.model("float32")), settings.sizes.calibration)


def stage_end_to_end(settings: Settings, record: Record) -> None:
    """`predict` over folders of JPEGs: files to probabilities."""
    for engine in common.engines(settings):
        for folder in settings.sizes.photos:
            name = f"{engine}, {folder}"
            common.end_to_end(settings, record, name, folder, model=settings.model("float16"), backend=engine)


def stage_decoding(settings: Settings, record: Record) -> None:
    """The same with the JPEGs decoded on the GPU, and with the choice left to measurement."""
    from mineral_batch.predictor import Predictor

    if "decode" not in inspect.signature(Predictor).parameters:
        record.save(decoding="not there: this release decodes on the processor only")
        return
    engine = common.engines(settings)[0]
    for decode in ("gpu", "auto"):
        for folder in settings.sizes.photos:
            name = f"{engine}, {folder}, decode {decode}"
            model = settings.model("float16")
            common.end_to_end(settings, record, name, folder, model=model, backend=engine, decode=decode)


def stage_peers(settings: Settings, record: Record) -> None:
    """What people use otherwise, in the same run: on the device by batch, and end to end with a DataLoader."""
    import runners

    common.photographs(settings)
    for name in settings.sizes.photos:
        if not record.has(f"DataLoader + torch eager, {name}"):
            loaded = runners.data_loader(settings, settings.folder(name))
            record.save(**{f"DataLoader + torch eager, {name}": loaded})
    kinds = {"torch eager, AMP": runners.eager, "torch.compile, AMP": runners.compiled}
    kinds["torch-tensorrt"] = runners.torch_tensorrt
    common.by_batch(settings, record, kinds, settings.sizes.few_batches)


def stage_rtx(settings: Settings, record: Record) -> None:
    """One attempt at an engine of TensorRT for RTX for this chip: it has no target for every one."""
    from mineral_batch.backends.tensorrt_build import Options
    from mineral_batch.backends.tensorrt_engine import Profile
    from mineral_export.engine import export_engine

    batch, target = settings.sizes.few_batches[-1], settings.models / "rtx.plan"
    # Without a GPU it builds for one that is not there, and cannot be run.
    options = Options(Profile(batch, batch, batch), ("8.9",) if settings.sizes.dry else ())
    try:
        made = export_engine(settings.model("float16"), target, options, runtime="tensorrt-rtx")
    except Exception as error:  # what it says is the result
        record.save(said=common.line(error))
        return
    record.save(built=f"{made.size / 1e6:.1f} MB for {', '.join(made.record.compute_capabilities)}")
    record.save(products=dict(made.record.products), layers=dict(made.record.layers))
    if not settings.sizes.dry:
        _verify(settings, record, "tensorrt rtx", target, "float16")
        common.end_to_end(settings, record, "tensorrt-rtx, 384", "384", model=target, backend="tensorrt")


def _machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"compute_capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        with suppress(Exception):
            from mineral_batch.backends.cuda_driver import cuda_version

            found["driver_runs_cuda"] = cuda_version()
    return found


def _packages() -> dict[str, str]:
    """Version of everything that may be measured; `absent` where it is not there."""
    from importlib import metadata

    names = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "pycuda", "timm", "onnx")
    versions = {}
    for name in (*names, "nncf", "nvidia-modelopt", "nvidia-nvimgcodec-cu13"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
