"""What the stages of the GPU run share: sizes, where things lie, and results on disk."""

from __future__ import annotations

import importlib.util
import json
import shutil
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        dry: on the CPU, where no figure means anything.
        preset: the paper's model; empty for a tiny one.
        batches: of the engines' throughput; those that decide come first.
        few_batches: of what is measured beside that; the first is that of `predict` on a GPU.
        matrix: side of the square matrix product.
        copy_mib: of one copy.
        photos: how many pictures of each folder.
        different: how many of these are different pictures; the others are links to them.
        large: width of the large photographs, pixels; 4:3.
        verified: pictures whose answers are compared, where no photographs are given.
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
    different: int
    large: int
    verified: int
    calibration: int
    seconds: float

    @property
    def device(self) -> str:
        """As torch and ONNX Runtime call it."""
        return "cpu" if self.dry else "cuda"


FULL = Sizes(
    dry=False,
    preset="vit-b16-384",
    batches=(64, 256, 128, 32, 1, 16, 8, 4, 2),
    few_batches=(64, 256, 1),
    matrix=8192,
    copy_mib=1024,
    photos={"384": 8192, "12MP": 1024},
    different=8,
    large=4000,
    verified=16,
    calibration=16,
    seconds=1.0,
)
TINY = Sizes(
    dry=True,
    preset="",
    batches=(2, 1),
    few_batches=(1,),
    matrix=64,
    copy_mib=1,
    photos={"384": 6, "12MP": 3},
    different=2,
    large=64,
    verified=8,
    calibration=2,
    seconds=0.05,
)

#: The two FP16 graphs of the paper's model: words behind the names of their rows -> name of their files.
GRAPHS = {"": "paper", ", Attention nodes": "paper-attention"}


@dataclass(frozen=True)
class Settings:
    """What a stage is told.

    Attributes:
        out: folder of the results, and of the models and pictures that stages share.
        wheels: folder of what was brought along.
        photos: folder of photographs to verify on.
        sizes: how much is measured.
        where: the GPU, the software and the files that results belong to; see `run.for_stage`.
    """

    out: Path
    wheels: Path | None
    photos: Path | None
    sizes: Sizes
    where: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Path:
        """Where packages that were brought along are unpacked."""
        return self.out / "site"

    @property
    def models(self) -> Path:
        """Folder of the models."""
        return self.out / "models"

    def model(self, precision: str, name: str = "paper") -> Path:
        """An ONNX file: of the paper's model with random weights, or of another."""
        return self.models / f"{name}-{precision}.onnx"

    def graphs(self) -> dict[str, Path]:
        """The FP16 graphs of the paper's model that are there, as in `GRAPHS`."""
        found = {words: self.model("float16", name) for words, name in GRAPHS.items()}
        return {words: model for words, model in found.items() if model.is_file()}

    def folder(self, name: str) -> Path:
        """Of photographs: a key of `sizes.photos`."""
        return self.out / "photos" / name

    def has_photographs(self, name: str) -> bool:
        """Whether a folder of photographs is complete."""
        return sum(1 for _ in self.folder(name).glob("*.jpg")) == self.sizes.photos[name]

    def has_files_of(self, stage: str) -> bool:
        """Whether what other stages need of a stage that is done still lies there."""
        if stage == "install":
            return self.site.is_dir()
        if stage == "photographs":
            return all(map(self.has_photographs, self.sizes.photos))
        if stage == "models":
            return self.model("float32").is_file() and self.model("float16").is_file()
        if stage == "pycuda":
            return all(map(self.is_compiled, read(self.out, stage).values()))
        return stage != "attention" or self.model("float16", GRAPHS[", Attention nodes"]).is_file()

    def is_compiled(self, told: Any) -> bool:
        """Whether a package is there, if what a stage tells is that it has compiled one."""
        return not (isinstance(told, dict) and "compiled" in told) or (self.site / told["compiled"]).is_dir()

    def remove_files_of(self, stage: str) -> None:
        """What a stage that begins anew must not find: made by other software, or of another model."""
        for pattern in _FILES.get(stage, ()):
            for found in self.out.glob(pattern):
                if found.is_dir():
                    shutil.rmtree(found)
                else:
                    found.unlink()


#: What stages leave in OUT beside their records; all of what is made of the paper's model goes with it.
_FILES = {
    "photographs": ("photos/*",),
    "models": ("models/paper-*",),
    "attention": ("models/paper-attention-*",),
    "starter": ("models/starter-*",),
    "rtx": ("models/rtx.plan*",),
    "quantised": ("models/paper-int8*", "models/paper-float8*"),
}


#: How a stage ended: written by the process that started it.
ENDINGS = ("status", "error", "log", "seconds", "gpu", "dry_run", "where", "made")


class FailuresError(Exception):
    """Some of what a stage measures did not work, or gave wrong answers."""


class Record:
    """What a stage has measured, on disk after every measurement.

    Args:
        settings: of the run.
        name: of the stage.

    Attributes:
        values: also what an earlier attempt that did not get to the end has left.
        failures: what did not work this time, with its reason.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._out, self._name = settings.out, name
        self._ending = {"status": "cut off", "dry_run": settings.sizes.dry, "where": settings.where}
        self.values = {key: value for key, value in read(settings.out, name).items() if key not in ENDINGS}
        self.failures: list[str] = []
        self.save()

    def save(self, **values: Any) -> None:
        """Add to it."""
        self.values.update(values)
        write(self._out, self._name, {**self.values, **self._ending})

    def has(self, name: str) -> bool:
        """Whether it was measured before and went well."""
        known = self.values.get(name)
        return known is not None and not (isinstance(known, dict) and known.keys() & {"failed", "left_out"})

    def failed(self, name: str, error: BaseException, **values: Any) -> None:
        """Add that it did not work, with what is known nevertheless; the next attempt tries it again."""
        self.count_failure(name, error)
        self.save(**{name: {**values, "failed": line(error)}})

    def count_failure(self, name: str, error: BaseException) -> None:
        """Let the stage fail in the end, and the log say where."""
        traceback.print_exception(error, limit=-4)
        self.failures.append(f"{name}: {line(error)}")

    def judged_by(self, comparison: str, rows: Iterable[str], stage: str = "") -> None:
        """Say which comparison tells whether the answers of some rows are right.

        Args:
            comparison: its row.
            rows: of this stage.
            stage: of the comparison; this one if empty.
        """
        known = self.values.get("answers", {})
        self.save(answers={**known, **{row: [stage or self._name, comparison] for row in rows}})

    def left_out(self, name: str, why: str) -> None:
        """Add that it cannot be measured here, which is no failure."""
        self.save(**{name: {"left_out": why}})

    def end(self, error: BaseException) -> None:
        """Write the stage's own failure down."""
        self._ending["error"] = line(error)
        self.save()

    def require_success(self) -> None:
        """Raise `FailuresError` if something did not work."""
        if self.failures:
            raise FailuresError(f"{len(self.failures)} did not work: {'; '.join(self.failures)}")


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


def is_there(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it
        return False


def has_tensorrt() -> bool:
    """Whether NVIDIA's full TensorRT is there, which alone runs INT8 and FP8 graphs in these types."""
    return is_there("tensorrt")


def engines(settings: Settings) -> list[str]:
    """Backends of `predict` to measure."""
    if settings.sizes.dry:
        return ["onnx-cpu"]
    return ["onnx-cuda", *(["tensorrt"] if has_tensorrt() else [])]
