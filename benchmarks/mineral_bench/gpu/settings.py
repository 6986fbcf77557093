"""What a stage is run with: sizes, and where its files are."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        dry: on the CPU, where no figure means anything.
        preset: the paper's model; empty for a tiny one.
        batches: of the engines' throughput; the decisive ones first.
        few_batches: of everything else; the first is that of `predict` on a GPU.
        matrix: side of the square matrix product.
        copy_mib: size of one copy.
        photos: folder of photographs -> number of files.
        different: how many of these are different images; the others are links to them.
        large: width of the large photographs, pixels; 4:3.
        verified: images whose output is compared, if no photographs are given.
        calibration: images that INT8 and FP8 are calibrated with.
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
        """Torch's and ONNX Runtime's name of the device."""
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
    calibration=16,
    seconds=0.05,
)

#: The two FP16 graphs of the paper's model: words in the names of their rows -> name of their files.
GRAPHS = {"": "paper", ", Attention nodes": "paper-attention"}


@dataclass(frozen=True)
class Settings:
    """What a stage is run with.

    Attributes:
        out: folder of the results, and of the models and images that stages share.
        wheels: folder of what was brought along.
        photos: folder of photographs to verify on.
        sizes: how much is measured.
        where: the GPU, the software and the files that the figures belong to; see `state.for_stage`.
    """

    out: Path
    wheels: Path | None
    photos: Path | None
    sizes: Sizes
    where: dict[str, str] = field(default_factory=dict)

    def to_words(self) -> dict[str, Any]:
        """Return what JSON can hold, for `from_words` in another process."""
        return {**asdict(self), "out": str(self.out), "wheels": _word(self.wheels), "photos": _word(self.photos)} | {
            "sizes": self.sizes.dry
        }

    @classmethod
    def from_words(cls, words: dict[str, Any]) -> Self:
        """Make the settings that `to_words` described."""
        places = {name: Path(words[name]) if words[name] else None for name in ("wheels", "photos")}
        return cls(Path(words["out"]), **places, sizes=TINY if words["sizes"] else FULL, where=words["where"])

    @property
    def site(self) -> Path:
        """Folder where packages that were brought along are unpacked."""
        return self.out / "site"

    @property
    def models(self) -> Path:
        """Folder of the models."""
        return self.out / "models"

    def model(self, precision: str, name: str = "paper") -> Path:
        """Return the place of an ONNX file: the paper's model with random weights, or another."""
        return self.models / f"{name}-{precision}.onnx"

    def graphs(self) -> dict[str, Path]:
        """Return the FP16 graphs of the paper's model that exist, as in `GRAPHS`."""
        files = {words: self.model("float16", name) for words, name in GRAPHS.items()}
        return {words: model for words, model in files.items() if model.is_file()}

    def folder(self, name: str) -> Path:
        """Return a folder of photographs: a key of `sizes.photos`."""
        return self.out / "photos" / name

    def has_photographs(self, name: str) -> bool:
        """Whether a folder of photographs is complete."""
        return sum(1 for _ in self.folder(name).glob("*.jpg")) == self.sizes.photos[name]

    def is_compiled(self, row: Any) -> bool:
        """Whether a package is there, if the row says that it was compiled."""
        return not (isinstance(row, dict) and "compiled" in row) or (self.site / row["compiled"]).is_dir()


def _word(path: Path | None) -> str | None:
    return None if path is None else str(path)
