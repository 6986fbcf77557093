"""What the stages of the GPU run share: sizes, results on disk, the models and photographs, and the clock."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        dry: on the CPU, where no figure means anything.
        preset: the paper's model; empty for a tiny one.
        batches: of the engines' throughput.
        few_batches: of what is measured beside the paper's model in FP16.
        matrix: side of the square matrix product.
        copy_mib: of one copy.
        photos: how many pictures of each folder.
        large: width of the large photographs, pixels; 4:3.
        calibration: pictures that INT8 and FP8 are calibrated with.
        seconds: of one measurement.
    """

    dry: bool
    preset: str
    batches: tuple[int, ...]
    few_batches: tuple[int, ...]
    matrix: int
    copy_mib: int
    photos: dict[str, int]
    large: int
    calibration: int
    seconds: float

    @property
    def device(self) -> str:
        """As torch calls it."""
        return "cpu" if self.dry else "cuda"


FULL = Sizes(
    dry=False,
    preset="vit-b16-384",
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    few_batches=(1, 16, 64, 256),
    matrix=8192,
    copy_mib=1024,
    photos={"384": 8192, "12MP": 256},
    large=4000,
    calibration=16,
    seconds=1.0,
)
TINY = Sizes(
    dry=True,
    preset="",
    batches=(1, 2),
    few_batches=(1,),
    matrix=64,
    copy_mib=1,
    photos={"384": 6, "12MP": 2},
    large=64,
    calibration=2,
    seconds=0.05,
)


@dataclass(frozen=True)
class Settings:
    """What a stage is told; `out` also holds the models and pictures that stages share."""

    out: Path
    wheels: Path | None
    photos: Path | None
    sizes: Sizes

    @property
    def models(self) -> Path:
        """Folder of the models; a dry run's tiny ones are never taken for real."""
        return self.out / ("dry-run" if self.sizes.dry else ".") / "models"

    def model(self, precision: str, name: str = "paper") -> Path:
        """An ONNX file: of the paper's model with random weights, or of another."""
        return self.models / f"{name}-{precision}.onnx"

    def folder(self, name: str) -> Path:
        """Of photographs: a key of `sizes.photos`."""
        return self.models.with_name("photos") / name


#: How a stage ended: written by the process that started it.
ENDINGS = ("status", "error", "log", "seconds", "dry_run")


class Record:
    """What a stage has measured, on disk after every measurement.

    Args:
        settings: of the run.
        name: of the stage.

    Attributes:
        values: also what an earlier attempt that did not get to the end has left.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._out, self._name = settings.out, name
        self._ending = {"status": "cut off", "dry_run": settings.sizes.dry}
        self.values = {key: value for key, value in read(settings.out, name).items() if key not in ENDINGS}
        self.save()

    def save(self, **values: Any) -> None:
        """Add to it."""
        self.values.update(values)
        write(self._out, self._name, {**self.values, **self._ending})

    def has(self, name: str) -> bool:
        """Whether it was measured before and went well."""
        known = self.values.get(name)
        return known is not None and not (isinstance(known, dict) and "failed" in known)


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


def line(error: BaseException) -> str:
    """The first line of what went wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def has_tensorrt() -> bool:
    """Whether NVIDIA's full TensorRT is there, which alone runs INT8 and FP8 graphs in these types."""
    return importlib.util.find_spec("tensorrt") is not None


def engines(settings: Settings) -> list[str]:
    """Backends of `predict` to measure."""
    if settings.sizes.dry:
        return ["onnx-cpu"]
    return ["onnx-cuda", *(["tensorrt"] if has_tensorrt() else [])]


def deployable(sizes: Sizes) -> tuple[Any, Any]:
    """The paper's model with random weights as it is deployed, and its contract."""
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


def noise(contract: Any, batch: int, device: str) -> Any:
    """(N, H, W, 3) uint8: noise, since a chip draws less power, and so runs faster, on zeros."""
    import torch

    return torch.randint(0, 256, (batch, *contract.input.shape), dtype=torch.uint8, device=device)


def pictures(settings: Settings, contract: Any, count: int) -> tuple[Any, str]:
    """(N, H, W, 3) uint8 to verify on or to calibrate with, and what they are: the photographs given, or synthetic."""
    from mineral_export import verify

    if settings.photos is None:
        return verify.synthetic(contract.input, count), "synthetic pictures"
    return verify.photographs([settings.photos], contract.input, count), f"photographs of {settings.photos.name}"


def photographs(settings: Settings) -> None:
    """Two folders of JPEGs, if they are not there: sixteen different pictures each, repeated."""
    import numpy as np
    from PIL import Image

    shapes = {"384": (384, 384), "12MP": (settings.sizes.large, settings.sizes.large * 3 // 4)}
    for name, count in settings.sizes.photos.items():
        folder = settings.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(sum(1 for _ in folder.iterdir()), count):
            file = folder / f"{index:05}.jpg"
            scratch = settings.out / "photo.part"
            if index >= 16:
                shutil.copyfile(folder / f"{index % 16:05}.jpg", scratch)
            else:
                grain = np.random.default_rng(index).integers(0, 256, (96, 128, 3), dtype=np.uint8)
                picture = Image.fromarray(grain).resize(shapes[name], Image.Resampling.BICUBIC)
                picture.save(scratch, "JPEG", quality=90, subsampling="4:2:0")
            scratch.replace(file)


def gflop(model: Path) -> float:
    """Billions of operations of the convolutions and matrix products of an ONNX graph for one picture; a product is 2.

    Raises:
        ValueError: if a shape is not known.
    """
    import onnx

    loaded = onnx.load(model)
    loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del loaded.graph.value_info[:]  # they say N where there is now one picture
    for value in loaded.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph
    shapes = {weight.name: list(weight.dims) for weight in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    return sum(_operations(node, shapes) for node in graph.node) / 1e9


def _operations(node: Any, shapes: dict[str, list[int]]) -> int:
    from math import prod

    if node.op_type not in ("Conv", "MatMul", "Gemm"):
        return 0
    given, weights, out = (shapes.get(name, []) for name in (node.input[0], node.input[1], node.output[0]))
    if not out or not all(out) or not weights:
        raise ValueError(f"the shape of {node.output[0]} is not known")
    if node.op_type == "Conv":  # weights (out, in / groups, height, width)
        return 2 * prod(out) * prod(weights[1:])
    is_transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * prod(out) * given[-2 if is_transposed else -1]


def measured(work: Callable[[], Any], sizes: Sizes) -> float:
    """Seconds of one call: median of five stretches after a warm-up, by CUDA events where there is a GPU."""
    stretch = _stretch_on_cpu if sizes.dry else _stretch_on_gpu
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


def by_batch(
    settings: Settings, record: Record, kinds: dict[str, Callable[..., Any]], batches: tuple[int, ...] | None = None
) -> None:
    """Pictures a second of each way to run a model, the pictures already on the device; goes on where it stopped."""
    for name, make in kinds.items():
        rates: dict[str, float] = dict(record.values.get(name, {}))
        record.values.pop(f"{name} ended", None)
        for batch in batches or settings.sizes.batches:
            if str(batch) in rates:
                continue
            try:
                rates[str(batch)] = batch / measured(make(settings, batch), settings.sizes)
            except Exception as error:  # a larger batch may not fit, a peer may not be there
                record.save(**{f"{name} ended": f"batch {batch}: {line(error)}"})
                break
            record.save(**{name: rates})


def end_to_end(settings: Settings, record: Record, name: str, folder: str, **options: Any) -> None:
    """`predict` over a folder: files to probabilities a second, after a warm-up on its first 64."""
    from mineral_batch.pipeline import StageTimes
    from mineral_batch.predictor import Predictor

    if record.has(name):
        return
    files, times = sorted(settings.folder(folder).iterdir()), StageTimes()
    try:
        with Predictor(**options) as predictor:
            sum(1 for _ in predictor.predict(files[:64]))
            start = time.perf_counter()
            done = sum(1 for _ in predictor.predict(files, times=times))
            rate = done / (time.perf_counter() - start)
            told = {"device": predictor.device, "decoding": getattr(predictor, "decoder_choice", "")}
    except Exception as error:  # the others are still to be measured
        record.save(**{name: {"failed": line(error)}})
        return
    record.save(**{name: {"pictures_per_s": rate, "pictures": done, **told, "seconds": times.rounded()}})
