"""A folder of synthetic images: images, masks and the manifest that `mineral-train fit` reads."""

from __future__ import annotations

import math
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from mineral_batch.errors import DataError, OptionError, plain_reason
from mineral_batch.files import atomic_file
from mineral_batch.minerals import MINERALS
from mineral_batch.results.csv import CsvWriter
from mineral_train.synth.compose import Bytes, check, generate, stream, turn_of
from mineral_train.synth.looks import LOOKS

if TYPE_CHECKING:
    from collections.abc import Iterable

SPLITS = ("train", "val", "test")
SOFTWARE = "mineral-batch synth"
_IMAGE_DESCRIPTION, _SOFTWARE = 0x010E, 0x0131  # EXIF tags
_NOTE = "SYNTHETIC.txt"
_FOLDERS = ("images", "masks")
_HEADER = ("path", "labels", "split", "specimen", "source")


@dataclass(frozen=True)
class SynthConfig:
    """What `write_dataset` draws; see `generate` for all but `split`.

    Attributes:
        seed: of the series.
        size: width and height, pixels.
        max_minerals: most labels in an image.
        minerals: which may occur.
        split: parts of train, validation and test.
        off_center: minerals anywhere in the image.
    """

    seed: int = 0
    size: int = 384
    max_minerals: int = 3
    minerals: tuple[str, ...] = MINERALS
    split: tuple[int, int, int] = (18, 1, 1)
    off_center: bool = False


def write_dataset(
    folder: str | Path,
    n: int,
    config: SynthConfig | None = None,
    *,
    workers: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write `images/000000.jpg`, `masks/000000.png`, ... and `manifest.csv`; return the manifest's path.

    `SYNTHETIC.txt` says what the folder is and what it was made with.

    The same config gives the same bytes on one machine (another libjpeg may round otherwise), with any number of
    workers, and n images are the first n of any larger number. The manifest comes last: a folder that has one
    is complete.

    Args:
        folder: made if it does not exist.
        n: number of images, above 0.
        config: what to draw; by default all 36 minerals at 384 x 384.
        workers: processes that draw.
        overwrite: delete what an earlier run left in a folder that is not empty.
        progress: show a bar on stderr.

    Raises:
        DataError: for an option out of its range or a folder that is in the way or cannot be written.
    """
    config = config or SynthConfig()
    _check_options(n, config, workers)
    root = Path(folder)
    try:
        _prepare(root, config, overwrite)
        with ExitStack() as stack:
            rows = _drawn(partial(_write_one, root, config), n, workers, stack)
            return _write_manifest(root, tqdm(rows, total=n, unit="image", disable=not progress))
    except OSError as error:
        raise DataError(f"cannot write {error.filename or root}: {error.strerror or error}") from error


def split_of(index: int, config: SynthConfig) -> str:
    """The split of one image, by (seed, index) alone.

    Every mineral goes through all parts of the split in turn, and in one round the minerals stand at different
    parts: the splits have their sizes and every mineral its share in each, from small numbers on.
    """
    parts = [name for name, share in zip(SPLITS, _reduced(config.split), strict=True) for _ in range(share)]
    order = stream(config.seed, 2).permutation(len(parts))
    turn, mineral = turn_of(index, config.seed, config.minerals)
    start = stream(config.seed, 3).permutation(len(config.minerals))
    slot = int(start[config.minerals.index(mineral)]) + turn
    return parts[int(order[slot % len(parts)])]


def read_mask(path: str | Path) -> Bytes:
    """Read a mask: (H, W) uint8, k + 1 where mineral k of `MINERALS` is seen, 0 where none is.

    Raises:
        DataError: for a file that is not such a mask.
    """
    try:
        with Image.open(path) as image:
            mode, mask = image.mode, np.array(image)
    except UnidentifiedImageError:
        raise DataError(f"cannot read the mask {path}: it is no image") from None
    except OSError as error:
        raise DataError(f"cannot read the mask {path}: {plain_reason(error)}") from None
    if mode != "P" or mask.max() > len(MINERALS):
        raise DataError(
            f"{path} is not a mask of `mineral-train synth`: it needs a palette of {len(MINERALS) + 1} values"
        )
    return mask


def _check_options(n: int, config: SynthConfig, workers: int) -> None:
    check(config.seed, config.size, config.max_minerals, config.minerals)
    if n < 1 or workers < 1:
        raise OptionError(f"the numbers of images and of workers must be above 0, got {n} and {workers}")
    if len(config.split) != 3 or min(config.split) < 0 or sum(config.split) == 0:
        raise OptionError(f"split needs three parts such as 18:1:1, got {':'.join(map(str, config.split))}")


def _reduced(split: tuple[int, ...]) -> list[int]:
    return [part // math.gcd(*split) for part in split]


def _prepare(root: Path, config: SynthConfig, overwrite: bool) -> None:
    """An empty folder with `images`, `masks` and a note; deletes only what an earlier run of this command wrote."""
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file; name a folder")
    if root.is_dir() and any(root.iterdir()):
        _clear(root, overwrite)
    for name in _FOLDERS:
        (root / name).mkdir(parents=True)
    (root / _NOTE).write_text(f"Synthetic pictures, not photographs: {SOFTWARE}, {config}\n", encoding="utf-8")


def _clear(root: Path, overwrite: bool) -> None:
    """Without the note the images may be somebody's photographs."""
    if not overwrite:
        raise DataError(f"{root} is not empty; name another folder, or pass --overwrite to replace its images")
    if not (root / _NOTE).is_file():
        raise DataError(f"{root} has no {_NOTE}, so its images are not this command's to replace; name another folder")
    (root / "manifest.csv").unlink(missing_ok=True)
    for name in _FOLDERS:
        if (root / name).exists():
            shutil.rmtree(root / name)


def _drawn(draw: partial[tuple[str, ...]], n: int, workers: int, stack: ExitStack) -> Iterable[tuple[str, ...]]:
    """The rows in order; the images are drawn here or in other processes."""
    if workers == 1:
        return map(draw, range(n))
    # spawn: a fork copies the locks of whatever threads the caller runs.
    pool = stack.enter_context(ProcessPoolExecutor(workers, get_context("spawn")))
    return pool.map(draw, range(n), chunksize=8)


def _write_one(root: Path, config: SynthConfig, index: int) -> tuple[str, ...]:
    """Draw and write one image and its mask; its row of the manifest."""
    specimen = generate(
        index,
        config.seed,
        config.size,
        max_minerals=config.max_minerals,
        minerals=config.minerals,
        off_center=config.off_center,
    )
    name = f"{index:06d}"
    note = f"Synthetic picture, not a photograph (seed {config.seed}, number {index}): {', '.join(specimen.labels)}"
    exif = Image.Exif()
    exif[_IMAGE_DESCRIPTION], exif[_SOFTWARE] = note, SOFTWARE
    Image.fromarray(specimen.pixels).save(root / "images" / f"{name}.jpg", quality=92, exif=exif)
    _write_mask(root / "masks" / f"{name}.png", specimen.mask, note)
    return (f"images/{name}.jpg", ";".join(specimen.labels), split_of(index, config),
            f"synthetic-{config.seed}-{name}", "synthetic")  # fmt: skip


def _write_mask(path: Path, mask: Bytes, note: str) -> None:
    """A palette PNG whose colors are the minerals' own, so that any viewer shows it sensibly."""
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    image.putpalette([0, 0, 0] + [c for mineral in MINERALS for c in LOOKS[mineral].colors[0]])
    text = PngInfo()
    text.add_text("Description", note)
    text.add_text("Software", SOFTWARE)
    text.add_text("Values", ";".join(f"{k}={m}" for k, m in enumerate(("none", *MINERALS))))
    image.save(path, pnginfo=text)


def _write_manifest(root: Path, rows: Iterable[tuple[str, ...]]) -> Path:
    """The manifest appears when the last image is drawn."""
    target = root / "manifest.csv"
    with atomic_file(target) as file:
        table = CsvWriter(file, _HEADER)
        for row in rows:
            table.write(row)
    return target
