"""Do two artefacts give the same answers, and where not, is the difference within a stated budget?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.labels import (
    match_paths,
    name_labels,
    of_split,
    read_labels,
    require_known,
)
from mineral_batch.evaluation.metrics import MeanAP, mean_average_precision
from mineral_batch.evaluation.thresholds import binarize
from mineral_batch.images.decode import load_image
from mineral_batch.images.discover import find_images
from mineral_batch.results.predictions import indicator
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure
from mineral_export import TOLERANCE
from mineral_train.synth import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mineral_batch.evaluation.metrics import Bools
    from mineral_batch.model.contract import InputSpec, ModelContract
    from mineral_batch.types import Pixels, Probabilities

    #: Called while working: phase, step, and of how many (0 where that is not known).
    Progress = Callable[[str, int, int], None]

# Batches of several sizes, so that a graph that fixed its batch axis is caught.
BATCHES = (1, 4, 3)
PICTURES = sum(BATCHES)

# Decoded at once: 42 MB of pictures of 384 x 384.
_CHUNK = 96


class ParityError(MineralError):
    """Two artefacts that should answer alike do not."""


class Answers(Protocol):
    """Anything that maps (N, H, W, 3) uint8 to (N, L) float32 probabilities."""

    def __call__(self, pixels: Pixels, /) -> Probabilities:
        """Answer one batch."""
        ...


@dataclass(frozen=True)
class Budget:
    """What one form of a model may lose against another: with labels `points`, without them the other three.

    Attributes:
        name: of the precision that it is for.
        points: of mAP lost, in hundredths.
        largest: difference of one probability.
        mean: difference over all probabilities.
        changed: share of the pictures in which another set of minerals is called present.
    """

    name: str
    points: float
    largest: float
    mean: float
    changed: float

    def __str__(self) -> str:
        return (
            f"{self.name}: with labels at most {self.points:g} points of mAP lost; without, a largest difference of "
            f"{self.largest:g}, a mean of {self.mean:g}, other minerals in {self.changed:.1%} of the pictures"
        )


#: By precision, the more exact first.
BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("float32", points=0.01, largest=TOLERANCE, mean=TOLERANCE, changed=0.01),
        Budget("TF32 allowed", points=0.1, largest=0.02, mean=0.001, changed=0.02),  # its mantissa is FP16's
        Budget("float16", points=0.1, largest=0.02, mean=0.001, changed=0.02),
        Budget("bfloat16", points=0.1, largest=0.1, mean=0.005, changed=0.05),
        Budget("float8", points=0.5, largest=0.3, mean=0.015, changed=0.15),
        Budget("int8", points=0.5, largest=0.3, mean=0.015, changed=0.15),
    )
}


def budget_of(precision: str, points: float | None = None) -> Budget:
    """The precision's budget, with another loss of mAP if one is given."""
    return BUDGETS[precision] if points is None else replace(BUDGETS[precision], points=points)


def least_exact(precisions: Iterable[str]) -> str:
    """Of the names that have a budget; `float32` if none has one."""
    order = list(BUDGETS)
    return max((name for name in precisions if name in order), key=order.index, default="float32")


@dataclass(frozen=True)
class Parity:
    """How far two artefacts' answers to the same pictures lie apart.

    Attributes:
        largest: of all absolute differences of a probability; NaN if one is not a number.
        mean: absolute difference.
        pictures: how many were compared.
        what: the pictures, in words.
        labels: L names.
        flips: decisions (a mineral in a picture, at its threshold) that differ.
        changed: pictures with at least one of them.
        ap: both artefacts' mAP by equation 6; None without labels.
    """

    largest: float
    mean: float
    pictures: int
    what: str
    labels: tuple[str, ...] = ()
    flips: int = 0
    changed: int = 0
    ap: tuple[MeanAP, MeanAP] | None = None

    def __str__(self) -> str:
        lost = "" if self.lost is None else f"{self.lost:.2f} points of mAP lost, "
        return (
            f"{lost}largest difference of a probability {self.largest:.2g}, mean {self.mean:.2g}, "
            f"other minerals in {self.changed}, over {self.pictures} {self.what}"
        )

    @property
    def lost(self) -> float | None:
        """Points of mAP that the second artefact lies below the first; None where no picture has a label."""
        if self.ap is None or np.isnan(self.ap[0].mean):
            return None
        return 100 * (self.ap[0].mean - self.ap[1].mean)

    def beyond(self, budget: Budget) -> tuple[str, ...]:
        """What exceeds the budget, in words; empty if all is within."""
        if not np.isfinite(self.largest):
            return ("a probability is not a number",)
        if self.lost is not None:
            figures = [("mAP lost, in points,", self.lost, budget.points)]
        else:
            figures = [
                ("largest difference of a probability", self.largest, budget.largest),
                ("mean difference", self.mean, budget.mean),
                ("share of pictures with other minerals", self.changed / self.pictures, budget.changed),
            ]
        return tuple(f"{name} {value:.2g} exceeds {most:g}" for name, value, most in figures if value > most)

    def require(self, budget: Budget) -> None:
        """Raise `ParityError` where the budget is exceeded."""
        reasons = self.beyond(budget)
        if reasons:
            raise ParityError(
                f"nothing was written: {'; '.join(reasons)}, over {self.pictures} {self.what} "
                f"(budget of {budget.name}); --force writes it all the same"
            )

    def record(self) -> dict[str, Any]:
        """The figures for JSON; null where one is not defined."""
        record: dict[str, Any] = {
            "pictures": self.pictures,
            "what": self.what,
            "largest": _number(self.largest),
            "mean": _number(self.mean),
            "decisions": self.pictures * len(self.labels),
            "flips": self.flips,
            "changed_pictures": self.changed,
        }
        if self.ap is not None:
            record["definition"] = self.ap[0].definition
            record["mean_ap"] = [_number(one.mean) for one in self.ap]
            record["points_lost"] = None if self.lost is None else _number(self.lost)
            record["minerals"] = [
                {"mineral": name, "support": support, "ap": [_number(one), _number(other)]}
                for name, support, one, other in self.minerals()
            ]
        return record

    def minerals(self) -> list[tuple[str, int, float, float]]:
        """Name, support and both AP of every mineral with a positive picture; the largest loss first."""
        if self.ap is None:
            return []
        one, other = self.ap
        rows = zip(self.labels, one.support.tolist(), one.per_label.tolist(), other.per_label.tolist(), strict=True)
        return sorted((row for row in rows if row[1]), key=lambda row: row[3] - row[2])


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None


@dataclass(frozen=True)
class Samples:
    """What two artefacts are compared on; drawn once.

    Attributes:
        what: the pictures, in words.
        batches: (N, H, W, 3) uint8, and (N, L) bool truth or None.
    """

    what: str
    batches: Iterable[tuple[Pixels, Bools | None]]

    @classmethod
    def of(cls, pixels: Pixels, what: str) -> Samples:
        """Pictures in memory, without labels."""
        return cls(what, [(pixels, None)])

    def counted(self, progress: Progress, phase: str) -> Samples:
        """The same pictures; how many were taken is told."""
        return replace(self, batches=_Counted(self.batches, progress, phase))


@dataclass(frozen=True)
class _Counted:
    """Batches with their truth, passed on; the pictures are counted."""

    batches: Iterable[tuple[Pixels, Bools | None]]
    progress: Progress
    phase: str

    def __iter__(self) -> Iterator[tuple[Pixels, Bools | None]]:
        done = 0
        self.progress(self.phase, done, 0)
        for batch in self.batches:
            yield batch
            done += len(batch[0])
            self.progress(self.phase, done, 0)


def samples(
    contract: ModelContract,
    photos: str | Path | None = None,
    labels: str | Path | None = None,
    split: str | None = None,
    count: int | None = None,
) -> Samples:
    """The pictures that a user names, or synthetic ones.

    Args:
        contract: of the artefacts: input size and labels.
        photos: folder or file of photographs. With `labels`, where the photographs named there are looked for.
        labels: CSV `path,labels[,split]`; without `photos` its paths are relative to its own folder.
        split: only these rows of `labels`.
        count: at most so many, from the first; None for all of them (of synthetic ones, `PICTURES`).

    Raises:
        DataError: if there is none, or the labels name what the model does not know.
    """
    if labels is None and split is not None:
        raise DataError("--split chooses rows of a table of labels: name it with --labels")
    if labels is None and photos is None:
        return Samples.of(synthetic(contract.input, count or PICTURES), "synthetic pictures")
    if labels is None:
        paths = [path for path in find_images([str(photos)]) if isinstance(path, Path)][:count]
        return Samples(f"photographs of {photos}", _decoded(paths, None, contract.input, str(photos)))
    paths, truth = _labelled(contract, Path(labels), photos, split)
    of_split = f"split {split} of {labels}" if split else str(labels)
    return Samples(f"photographs of {of_split}", _decoded(paths[:count], truth, contract.input, of_split))


def _labelled(
    contract: ModelContract, table: Path, photos: str | Path | None, split: str | None
) -> tuple[list[Path], Bools]:
    """Files and truth (N, L) of a table's rows."""
    rows, _ = name_labels(of_split(read_labels(table), split, table), contract.labels)
    require_known(rows, contract.labels, table, "the model does not know")
    if photos is None:
        found = {row.path: table.parent / row.path for row in rows}
    else:
        files = [path for path in find_images([str(photos)]) if isinstance(path, Path)]
        matches = match_paths([str(path) for path in files], [row.path for row in rows])
        matches.log(list(map(str, files)))
        found = {path: files[index] for path, index in matches.index.items()}
    rows = [row for row in rows if row.path in found]
    if not rows:
        raise DataError(f"none of the photographs in {table} is under {photos}")
    return [found[row.path] for row in rows], indicator([row.labels for row in rows], contract.labels)


def _decoded(
    paths: Sequence[Path], truth: Bools | None, spec: InputSpec, where: str
) -> Iterator[tuple[Pixels, Bools | None]]:
    """The readable photographs, a chunk at a time, with their rows of the truth."""
    read = partial(load_image, spec=spec)
    remaining, seen = iter(enumerate(paths)), False
    with ThreadPoolExecutor(cpu_count()) as pool:
        while chunk := list(islice(remaining, _CHUNK)):
            images = list(pool.map(read, [path for _, path in chunk]))
            good = [
                (i, image.pixels) for (i, _), image in zip(chunk, images, strict=True) if not isinstance(image, Failure)
            ]
            if good:
                seen = True
                yield np.stack([pixels for _, pixels in good]), None if truth is None else truth[[i for i, _ in good]]
    if not seen:
        raise DataError(f"no readable photograph under {where}")


def compare(one: Answers, other: Answers, pictures: Samples, contract: ModelContract) -> Parity:
    """Both artefacts' answers to the same pictures, given to each in batches of different sizes.

    Args:
        one: the reference.
        other: what is compared with it.
        pictures: at least one.
        contract: of the reference: labels and thresholds.
    """
    answers: list[tuple[Probabilities, Probabilities]] = []
    truths: list[Bools] = []
    for pixels, truth in pictures.batches:
        # Copied, because an engine may overwrite its answer in the next call.
        answers += [(one(batch).copy(), other(batch).copy()) for batch in _in_batches(pixels)]
        truths += [] if truth is None else [truth]
    first, second = (np.concatenate(side).astype(np.float64) for side in zip(*answers, strict=True))
    return _parity(first, second, np.concatenate(truths) if truths else None, pictures.what, contract)


def _parity(
    one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], truth: Bools | None, what: str, contract: ModelContract
) -> Parity:
    """Of (N, L) probabilities."""
    difference = np.abs(one - other)
    thresholds = np.array(contract.thresholds)
    flips = binarize(one, thresholds) != binarize(other, thresholds)
    if truth is not None and np.isfinite(difference).all():
        ap = mean_average_precision(one, truth), mean_average_precision(other, truth)
    else:
        ap = None
    return Parity(
        largest=float(difference.max()),
        mean=float(difference.mean()),
        pictures=len(one),
        what=what,
        labels=contract.labels,
        flips=int(flips.sum()),
        changed=int(flips.any(axis=1).sum()),
        ap=ap,
    )


def _in_batches(pixels: Pixels) -> list[Pixels]:
    starts = np.cumsum(BATCHES)
    return [batch for batch in np.split(pixels, starts) if len(batch)]


def photographs(inputs: Iterable[str | Path], spec: InputSpec, count: int = PICTURES) -> Pixels:
    """The first `count` readable photographs under `inputs`, (N, H, W, 3) uint8.

    Raises:
        DataError: if there is none.
    """
    inputs = list(inputs)
    found = (path for path in find_images(inputs) if isinstance(path, Path))
    images = (image for path in found if not isinstance(image := load_image(path, spec), Failure))
    pixels = [image.pixels for image in islice(images, count)]
    if not pixels:
        raise DataError(f"no readable photograph under {', '.join(map(str, inputs))}")
    return np.stack(pixels)


def spread(inputs: Iterable[str | Path], spec: InputSpec, count: int) -> Pixels:
    """At most `count` readable photographs, evenly over all under `inputs`, (N, H, W, 3) uint8: for calibration.

    Raises:
        DataError: if there is none.
    """
    inputs = list(inputs)
    paths = [path for path in find_images(inputs) if isinstance(path, Path)]
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int))]
    where = ", ".join(map(str, inputs))
    return np.concatenate([pixels for pixels, _ in _decoded(chosen, None, spec, where)])


def synthetic(spec: InputSpec, count: int = PICTURES) -> Pixels:
    """`count` pictures from `mineral-train synth`'s generator at the model's input size, (N, H, W, 3) uint8."""
    side = max(spec.height, spec.width)
    pictures = [generate(index, seed=0, size=side).pixels for index in range(count)]
    return np.stack(pictures)[:, : spec.height, : spec.width]
