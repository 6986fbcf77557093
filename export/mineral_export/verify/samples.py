"""The images that two forms of a model are compared on, and those that a quantizer calibrates with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from mineral_batch.errors import DataError, OptionError
from mineral_batch.evaluation.labels import (
    match_paths,
    name_labels,
    of_split,
    read_labels,
    require_known,
)
from mineral_batch.images.decode import load_image
from mineral_batch.images.discover import find_images
from mineral_batch.results.predictions import indicator
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure
from mineral_train.synth import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mineral_batch.evaluation.metrics import Bools
    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Pixels

    #: Called with the phase, the step, and the number of steps (0 if unknown).
    Progress = Callable[[str, int, int], None]

T = TypeVar("T")

#: Synthetic images to compare on; `parity.compare` cuts them into batches of 1, 4 and 3.
SYNTHETIC_COUNT = 8

# Images in memory at once: 42 MB at 384 x 384.
_CHUNK = 96


@dataclass(frozen=True)
class Samples:
    """Images to compare on; they can be iterated over once.

    Attributes:
        what: the images in words.
        batches: (N, H, W, 3) uint8 with (N, L) bool ground truth, or None.
        are_synthetic: rendered, and so of no use to judge how often answers about photographs differ.
    """

    what: str
    batches: Iterable[tuple[Pixels, Bools | None]]
    are_synthetic: bool = False

    @classmethod
    def of(cls, pixels: Pixels, what: str) -> Samples:
        """Wrap images in memory, without ground truth."""
        return cls(what, [(pixels, None)])

    def with_progress(self, progress: Progress, phase: str) -> Samples:
        """Return the same images; `progress` is called as they are consumed."""
        return replace(self, batches=_counted(self.batches, progress, phase))


def _counted(
    batches: Iterable[tuple[Pixels, Bools | None]], progress: Progress, phase: str
) -> Iterator[tuple[Pixels, Bools | None]]:
    done = 0
    progress(phase, done, 0)
    for batch in batches:
        yield batch
        done += len(batch[0])
        progress(phase, done, 0)


@dataclass(frozen=True)
class LabeledImages:
    """Image files with ground truth.

    Attributes:
        paths: N files.
        truth: (N, L) bool.
        missing: rows of the label table whose image was not found.
    """

    paths: tuple[Path, ...]
    truth: Bools
    missing: int = 0


def labeled_images(
    table: Path, labels: Sequence[str], root: str | Path | None = None, split: str | None = None
) -> LabeledImages:
    """Match the rows of a label table with image files.

    Args:
        table: CSV, see `mineral_batch.evaluation.labels.read_labels`.
        labels: L names, the model's.
        root: folder that is searched for the images; None takes the table's paths relative to the table's folder.
        split: use only these rows of the table.

    Raises:
        DataError: if nothing matches, or the model knows none of the table's labels.
    """
    rows, _ = name_labels(of_split(read_labels(table), split, table), labels)
    require_known(rows, labels, table, "the model does not know", ignore_unknown=True)
    rows = [row._replace(labels=tuple(name for name in row.labels if name in labels)) for row in rows]
    if root is None:
        found = {row.path: table.parent / row.path for row in rows}
    else:
        files = image_files([root])
        matches = match_paths([str(path) for path in files], [row.path for row in rows])
        matches.log(list(map(str, files)))
        found = {path: files[index] for path, index in matches.index.items()}
    matched = [row for row in rows if row.path in found]
    if not matched:
        chosen = f" of split {split}" if split else ""
        raise DataError(f"none of the {len(rows)} images{chosen} in {table} is under {root}")
    truth = indicator([row.labels for row in matched], labels)
    return LabeledImages(tuple(found[row.path] for row in matched), truth, len(rows) - len(matched))


def load_samples(
    contract: ModelContract,
    photos: str | Path | None = None,
    labels: str | Path | None = None,
    split: str | None = None,
    count: int | None = None,
) -> Samples:
    """Load the images that the user names, or make synthetic ones.

    Args:
        contract: the model's input size and labels.
        photos: folder or file. With `labels`, the folder that is searched for the labeled images.
        labels: CSV `path,labels[,split]`; without `photos` its paths are relative to its own folder.
        split: use only these rows of `labels`.
        count: use the first `count` images; None for all (`SYNTHETIC_COUNT` synthetic ones).

    Raises:
        DataError: if there is no readable image, or the labels name what the model does not know.
    """
    if labels is None and split is not None:
        raise OptionError("--split chooses rows of a label table: add --labels")
    if labels is None and photos is None:
        pixels = synthetic_images(contract.input, count or SYNTHETIC_COUNT)
        return Samples("synthetic images", [(pixels, None)], are_synthetic=True)
    if labels is None:
        paths = image_files([str(photos)])[:count]
        if not paths:  # before minutes of exporting
            raise DataError(f"no image under {photos}")
        return Samples(f"photographs of {photos}", _decoded(paths, None, contract.input, str(photos)))
    matched = labeled_images(Path(labels), contract.labels, photos, split)
    where = f"split {split} of {labels}" if split else str(labels)
    return Samples(f"photographs of {where}", _decoded(matched.paths[:count], matched.truth, contract.input, where))


def image_files(inputs: Iterable[str | Path]) -> list[Path]:
    """List the image files under folders; what cannot be listed is left out."""
    return [path for path in find_images(list(inputs)) if isinstance(path, Path)]


def decode_in_chunks(paths: Sequence[Path], spec: InputSpec, chunk: int = _CHUNK) -> Iterator[tuple[list[int], Pixels]]:
    """Yield the readable images, a chunk at a time: their places in `paths`, and (n, H, W, 3) uint8."""
    read = partial(load_image, spec=spec)
    remaining = iter(enumerate(paths))
    with ThreadPoolExecutor(cpu_count()) as pool:
        while part := list(islice(remaining, chunk)):
            images = list(pool.map(read, [path for _, path in part]))
            good = [
                (index, image.pixels)
                for (index, _), image in zip(part, images, strict=True)
                if not isinstance(image, Failure)
            ]
            if good:
                yield [index for index, _ in good], np.stack([pixels for _, pixels in good])


def _decoded(
    paths: Sequence[Path], truth: Bools | None, spec: InputSpec, where: str
) -> Iterator[tuple[Pixels, Bools | None]]:
    """Yield the readable images with their rows of the ground truth."""
    is_empty = True
    for places, pixels in decode_in_chunks(paths, spec):
        is_empty = False
        yield pixels, None if truth is None else truth[places]
    if is_empty:
        raise DataError(f"no readable image under {where}")


def first_images(inputs: Iterable[str | Path], spec: InputSpec, count: int) -> Pixels:
    """Return the first `count` readable images under `inputs`, (N, H, W, 3) uint8.

    Raises:
        DataError: if there is none.
    """
    inputs = list(inputs)
    images = (image for path in image_files(inputs) if not isinstance(image := load_image(path, spec), Failure))
    pixels = [image.pixels for image in islice(images, count)]
    if not pixels:
        raise DataError(f"no readable image under {', '.join(map(str, inputs))}")
    return np.stack(pixels)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items, evenly spaced from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places)]


def synthetic_images(spec: InputSpec, count: int = SYNTHETIC_COUNT) -> Pixels:
    """Render `count` images with `mineral-train synth`'s generator at the model's input size, (N, H, W, 3) uint8."""
    side = max(spec.height, spec.width)
    images = [generate(index, seed=0, size=side).pixels for index in range(count)]
    return np.stack(images)[:, : spec.height, : spec.width]
