"""The stages of the GPU run. Each saves after every measurement, so that what it has measured outlives it."""

from __future__ import annotations

import importlib.util
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Save = Callable[..., None]

_PIECE = ".part00"


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        dry: on the CPU, where no figure means anything.
        preset: the paper's model; empty for a tiny one.
        batches: of the engines' throughput.
        matrix: side of the square matrix product.
        copy_mib: of one copy.
        photos: how many pictures of each folder.
        large: width of the large photographs, pixels; 4:3.
        seconds: of one measurement.
    """

    dry: bool
    preset: str
    batches: tuple[int, ...]
    matrix: int
    copy_mib: int
    photos: dict[str, int]
    large: int
    seconds: float

    @property
    def device(self) -> str:
        """As torch calls it."""
        return "cpu" if self.dry else "cuda"


FULL = Sizes(
    False, "vit-b16-384", (1, 2, 4, 8, 16, 32, 64, 128, 256), 8192, 1024, {"384": 8192, "12MP": 256}, 4000, 1.0
)
TINY = Sizes(True, "", (1, 2), 64, 1, {"384": 6, "12MP": 2}, 64, 0.05)


@dataclass(frozen=True)
class Settings:
    """What a stage is told; `out` also holds the models and pictures that stages share."""

    out: Path
    wheels: Path | None
    photos: Path | None
    sizes: Sizes

    def model(self, precision: str) -> Path:
        """The ONNX file of the paper's model with random weights."""
        return self.out / "models" / f"paper-{precision}.onnx"


def path(out: Path, name: str) -> Path:
    """Where a stage's result is."""
    return out / "stages" / f"{name}.json"


def read(out: Path, name: str) -> dict[str, Any]:
    """A stage's result so far; empty if there is none, or it was cut off."""
    try:
        found: dict[str, Any] = json.loads(path(out, name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def write(out: Path, name: str, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    target = path(out, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_suffix(".part")
    scratch.write_text(json.dumps(result, indent=1), "utf-8")
    scratch.replace(target)


def run(name: str, settings: Settings) -> None:
    """Do one stage in this process."""
    result: dict[str, Any] = {}

    def save(**values: Any) -> None:
        result.update(values)
        write(settings.out, name, result)

    save()
    globals()[f"stage_{name}"](settings, save)


def stage_install(settings: Settings, save: Save) -> None:
    """Unpack what was brought along into OUT/site; nothing is fetched."""
    site = settings.out / "site"
    site.mkdir(exist_ok=True)
    installed: list[str] = []
    failed: dict[str, str] = {}
    for file in _brought(settings):
        try:
            _install(file, site)
            installed.append(file.name)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError, lzma.LZMAError) as error:
            failed[file.name] = str(getattr(error, "stderr", "") or error).strip()[-300:]
        save(installed=installed, failed=failed)
    save(installed=installed, failed=failed, without=[] if installed else ["nothing was brought along"])


def _brought(settings: Settings) -> Iterator[Path]:
    """Wheels, archives and sdists; NAME.part00, NAME.part01, ... are put together first."""
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
    if file.name.endswith(".tar.xz"):
        with tarfile.open(file) as archive:
            archive.extractall(site, filter="data")
        return
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--upgrade"]
    # Files that the user brought along.
    subprocess.run([*command, "--target", str(site), str(file)], check=True, capture_output=True, text=True)  # noqa: S603


def stage_chip(settings: Settings, save: Save) -> None:
    """The ceilings: matrix products and copies, and what is installed."""
    import torch

    save(machine=_machine(), packages=_packages())
    sizes = settings.sizes
    for name in ("float16", "bfloat16", "float32"):
        left, right = (
            torch.randn(sizes.matrix, sizes.matrix, device=sizes.device, dtype=getattr(torch, name)) for _ in range(2)
        )
        seconds = measured(lambda left=left, right=right: left @ right, sizes)
        save(**{f"matrix_{name}_tflops": 2 * sizes.matrix**3 / seconds / 1e12})
    count = sizes.copy_mib << 20
    device = torch.zeros(count, dtype=torch.uint8, device=sizes.device)
    other = torch.zeros_like(device)
    host = torch.zeros(count, dtype=torch.uint8, pin_memory=not sizes.dry)
    copies = {
        "to_gpu": lambda: device.copy_(host, non_blocking=True),
        "from_gpu": lambda: host.copy_(device, non_blocking=True),
        "on_gpu_read_and_written": lambda: other.copy_(device),
    }
    for name, copy in copies.items():
        bytes_moved = count * (2 if name.startswith("on_gpu") else 1)
        save(**{f"copy_{name}_gb_per_s": bytes_moved / measured(copy, sizes) / 1e9})
    save(pycuda_ring=_ring(sizes))


def _ring(sizes: Sizes) -> str:
    """The native backend's CUDA layer without an engine: two lanes of copies in and out, each one CUDA graph."""
    if sizes.dry:
        return "not run: there is no GPU in a dry run"
    try:
        return _ring_rate(16 << 20)
    except Exception as error:
        return f"failed: {error}"


def _ring_rate(size: int) -> str:
    import numpy as np

    from mineral_batch.backends.cuda_driver import gpus, page_locked
    from mineral_batch.backends.tensorrt_cuda import Cuda, Graph

    cuda = Cuda(gpus()[0])
    hosts = [(page_locked((size,), 0), page_locked((size,), 0)) for _ in range(2)]
    with cuda.current():
        lanes = [(cuda.stream(), cuda.allocate(size)) for _ in range(2)]
        graphs = []
        for index, ((stream, memory), (_, answer)) in enumerate(zip(lanes, hosts, strict=True)):
            hosts[index][0][:] = np.random.default_rng(index).integers(0, 256, size)

            def work(stream: Any = stream, memory: Any = memory, answer: Any = answer) -> None:
                cuda.from_gpu(answer, memory, stream)

            graphs.append(Graph(stream, work))
        start, rounds = time.perf_counter(), 50
        for _ in range(rounds):
            for (stream, memory), (given, _), graph in zip(lanes, hosts, graphs, strict=True):
                cuda.to_gpu(memory, given, stream)
                graph.launch()
        for stream, _ in lanes:
            stream.synchronize()
        seconds = time.perf_counter() - start
        is_right = all(np.array_equal(given, answer) for given, answer in hosts)
        for graph, (_, memory) in zip(graphs, lanes, strict=True):
            graph.close()
            memory.free()
    rate = 2 * len(lanes) * rounds * size / seconds / 1e9
    return f"{rate:.1f} GB/s in and out together, bytes {'right' if is_right else 'WRONG'}"


def stage_models(settings: Settings, save: Save) -> None:
    """The paper's model with random weights as ONNX in float32 and in FP16, and what it computes."""
    from torch.utils.flop_counter import FlopCounterMode

    from mineral_export.fp16 import to_fp16
    from mineral_export.onnx import export_onnx

    (settings.out / "models").mkdir(exist_ok=True)
    deployable, contract = _deployable(settings.sizes)
    with FlopCounterMode(display=False) as counter:
        deployable(_pixels(contract, 1, "cpu"))
    save(gflop_per_picture=counter.get_total_flops() / 1e9, input=list(contract.input.shape))
    made = export_onnx(deployable.model, contract, settings.model("float32"))
    save(float32_mb=made.size / 1e6, float32_parity=str(made.parity))
    half = to_fp16(settings.model("float32"), settings.model("float16"), force=True)
    save(float16_mb=half.size / 1e6, float16_parity_on_the_cpu=str(half.parity))
    _photographs(settings)
    save(photographs={name: f"{count} JPEGs" for name, count in settings.sizes.photos.items()})


def _deployable(sizes: Sizes) -> tuple[Any, Any]:
    import torch

    from mineral_batch.contract import MINERALS, ModelContract
    from mineral_export.deployable import Deployable
    from mineral_train.model import PRESETS, ModelConfig, build_model, input_spec

    tiny = {"image_size": 32, "projection": "linear", "width": 32, "heads": 2, "ffn": 48, "labels": MINERALS}
    config = PRESETS[sizes.preset] if sizes.preset else ModelConfig("test_vit", **tiny)
    model = build_model(config, seed=0)
    with torch.no_grad():  # at initialisation every probability is near 0.5, and parity would prove little
        for parameter in model.head.parameters():
            parameter.mul_(8)
    contract = ModelContract(MINERALS, (0.5,) * len(MINERALS), input_spec(config), name="random weights")
    return Deployable(model, contract.input), contract


def _photographs(settings: Settings) -> None:
    """Two folders of JPEGs: sixteen different pictures each, repeated."""
    import numpy as np
    from PIL import Image

    shapes = {"384": (384, 384), "12MP": (settings.sizes.large, settings.sizes.large * 3 // 4)}
    for name, count in settings.sizes.photos.items():
        folder = settings.out / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            file = folder / f"{index:05}.jpg"
            if index >= 16:
                shutil.copyfile(folder / f"{index % 16:05}.jpg", file)
                continue
            grain = np.random.default_rng(index).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            picture = Image.fromarray(grain).resize(shapes[name], Image.Resampling.BICUBIC)
            picture.save(file, quality=90, subsampling="4:2:0")


def stage_verify(settings: Settings, save: Save) -> None:
    """FP16 on each engine against float32 ONNX on the CPU."""
    from mineral_export import verify
    from mineral_export.artefacts import open_artefact

    for engine in _engines(settings):
        try:
            with (
                open_artefact(f"{settings.model('float32')}@onnx-cpu") as one,
                open_artefact(f"{settings.model('float16')}@{engine}") as other,
            ):
                pictures = _samples(settings, one.contract)
                parity = verify.compare(one.answers, other.answers, pictures, one.contract)
            beyond = parity.beyond(verify.BUDGETS["float16"])
            save(**{engine: {"parity": str(parity), "within_budget": not beyond}})
        except Exception as error:  # the other engines are still to be verified
            save(**{engine: {"failed": _line(error)}})


def _samples(settings: Settings, contract: Any) -> Any:
    from mineral_export import verify

    if settings.photos is None:
        return verify.Samples.of(verify.synthetic(contract.input), "synthetic pictures")
    pixels = verify.photographs([settings.photos], contract.input, 64)
    return verify.Samples.of(pixels, f"photographs of {settings.photos.name}")


def stage_engines(settings: Settings, save: Save) -> None:
    """Throughput of our engines by batch, by CUDA events, the pictures already on the GPU."""
    import runners

    kinds = {"ONNX Runtime FP16": runners.onnx_runtime, "ONNX Runtime TensorRT": runners.onnx_tensorrt}
    kinds["TensorRT FP16"] = runners.tensorrt
    _by_batch(settings, save, kinds)


def stage_peers(settings: Settings, save: Save) -> None:
    """What people use otherwise, in the same run: on the device by batch, and end to end with a DataLoader."""
    import runners

    kinds = {"torch eager, AMP": runners.eager, "torch.compile, AMP": runners.compiled}
    kinds["torch-tensorrt"] = runners.torch_tensorrt
    _by_batch(settings, save, kinds)
    for name in settings.sizes.photos:
        save(**{f"DataLoader + torch eager, {name}": runners.data_loader(settings, settings.out / "photos" / name)})


def _by_batch(settings: Settings, save: Save, kinds: dict[str, Callable[..., Any]]) -> None:
    for name, make in kinds.items():
        rates: dict[str, float] = {}
        for batch in settings.sizes.batches:
            try:
                rates[str(batch)] = batch / measured(make(settings, batch), settings.sizes)
            except Exception as error:  # a larger batch may not fit, a peer may not be there
                save(**{f"{name} ended": f"batch {batch}: {_line(error)}"})
                break
            save(**{name: rates})


def stage_end_to_end(settings: Settings, save: Save) -> None:
    """`predict` over folders of JPEGs: files to probabilities."""
    from mineral_batch.pipeline import StageTimes
    from mineral_batch.predictor import Predictor

    for engine in _engines(settings):
        for name in settings.sizes.photos:
            times = StageTimes()
            try:
                with Predictor(settings.model("float16"), backend=engine) as predictor:
                    folder = settings.out / "photos" / name
                    sum(1 for _ in predictor.predict(sorted(folder.iterdir())[:64]))  # warm
                    start = time.perf_counter()
                    done = sum(1 for _ in predictor.predict([folder], times=times))
                    rate = done / (time.perf_counter() - start)
                save(**{f"{engine}, {name}": {"pictures_per_s": rate, "pictures": done, "seconds": times.rounded()}})
            except Exception as error:  # the other engines and folders are still to be measured
                save(**{f"{engine}, {name}": {"failed": _line(error)}})


def stage_rtx(settings: Settings, save: Save) -> None:
    """One attempt at an engine of TensorRT for RTX for this chip: it has no target for every one."""
    from mineral_batch.backends.tensorrt_build import Options
    from mineral_batch.backends.tensorrt_engine import Profile
    from mineral_export.engine import export_engine

    batch = settings.sizes.batches[-1]
    target = settings.out / "models" / "rtx.plan"
    try:
        made = export_engine(
            settings.model("float16"), target, Options(Profile(batch, batch, batch)), runtime="tensorrt-rtx"
        )
        save(built=f"{made.size / 1e6:.0f} MB", products=dict(made.record.products), layers=dict(made.record.layers))
    except Exception as error:  # what it says is the result
        save(said=_line(error))


def _engines(settings: Settings) -> list[str]:
    if settings.sizes.dry:
        return ["onnx-cpu"]
    return ["onnx-cuda", *(["tensorrt"] if importlib.util.find_spec("tensorrt") else [])]


def measured(work: Callable[[], Any], sizes: Sizes) -> float:
    """Seconds of one call: median of five stretches after a warm-up, by CUDA events where there is a GPU."""
    stretch = _stretch_on_gpu if not sizes.dry else _stretch_on_cpu
    for _ in range(3):
        work()
    once = max(stretch(work, 1), 1e-6)
    rounds = max(1, int(sizes.seconds / 5 / once))
    return sorted(stretch(work, rounds) / rounds for _ in range(5))[2]


def _stretch_on_gpu(work: Callable[[], Any], rounds: int) -> float:
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(rounds):
        work()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _stretch_on_cpu(work: Callable[[], Any], rounds: int) -> float:
    start = time.perf_counter()
    for _ in range(rounds):
        work()
    return time.perf_counter() - start


def _pixels(contract: Any, batch: int, device: str) -> Any:
    """(N, H, W, 3) uint8: noise, since a chip draws less power, and so runs faster, on zeros."""
    import torch

    return torch.randint(0, 256, (batch, *contract.input.shape), dtype=torch.uint8, device=device)


def _machine() -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"compute_capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
    return found


def _packages() -> dict[str, str]:
    """Version of everything that may be measured; `absent` where it is not there."""
    from importlib import metadata

    names = ("onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "pycuda", "timm", "onnx")
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
