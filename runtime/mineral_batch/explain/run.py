"""A run of explanations: the maps of many photographs as pictures, numbers and scores in a folder.

| in the folder | content |
|---|---|
| maps.csv | a row per map: `path`, `mineral`, `probability`, `present` (0 or 1), `peak_x`, `peak_y`, `overlay` |
| overlays/ | a PNG per map, in a copy of the tree with a folder for each picture |
| maps/ | on request: an .npz per picture with the maps as numbers |
| scores.json | with masks: the pointing game, and on request deletion and insertion |
| failures.csv | a row per picture that could not be read, as `predict` writes it; there only if there is one |

`peak_x` and `peak_y` are pixels of the upright photograph, empty where nothing in it speaks for the mineral. Folders
and tables of an earlier run are replaced when this one is complete.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import DataError, ImageError, one_line
from mineral_batch.explain.maps import (
    Explanation,
    LabelMap,
    Pointing,
    centre_first,
    deletion,
    explain,
    insertion,
    peak,
    point,
    read_masks,
)
from mineral_batch.explain.overlay import overlay
from mineral_batch.files import whole_file
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.discover import find_sources
from mineral_batch.images.geometry import visible_box
from mineral_batch.results.write import FAILURES, FailuresCsv, mirrored
from mineral_batch.system import cpu_count
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mineral_batch.explain.maps import Explainer
    from mineral_batch.types import Source

INDEX, OVERLAYS, MAPS, SCORES = "maps.csv", "overlays", "maps", "scores.json"
_COLUMNS = ("path", "mineral", "probability", "present", "peak_x", "peak_y", "overlay")
_AHEAD = 4  # pictures per thread that may wait for a slow one before them


@dataclass(frozen=True)
class Asked:
    """What is shown and written.

    Attributes:
        top: at most so many minerals of a picture; None for as many as the model gives.
        minimum: only minerals of at least this probability; None for each mineral's own threshold.
        minerals: only these; empty for all.
        side: overlays are reduced to at most so many pixels a side.
        with_maps: write the maps as numbers, too.
        masks: folder of masks to score by; None for no scores.
        with_deletion: score by deletion and insertion, too.
    """

    top: int | None = None
    minimum: float | None = None
    minerals: tuple[str, ...] = ()
    side: int = 1600
    with_maps: bool = False
    masks: Path | None = None
    with_deletion: bool = False

    def shown(self, maps: Sequence[LabelMap]) -> list[LabelMap]:
        """Those of a picture's maps that are wanted."""
        wanted = [one for one in maps if not self.minerals or one.label in self.minerals]
        probable = [one for one in wanted if (one.present if self.minimum is None else one.probability >= self.minimum)]
        return probable[: self.top]


class Row(NamedTuple):
    """One row of maps.csv."""

    path: str
    mineral: str
    probability: float
    present: bool
    peak: tuple[float, float] | None
    overlay: str

    def cells(self) -> list[str]:
        """As text."""
        x, y = ("", "") if self.peak is None else (f"{value:.1f}" for value in self.peak)
        return [
            self.path,
            self.mineral,
            f"{self.probability:.7g}",
            str(int(self.present)),
            x,
            y,
            self.overlay,
        ]


class Score(NamedTuple):
    """One map against its mask; deletion and insertion as (the map's area, that of a map largest in the middle)."""

    mineral: str
    pointing: Pointing
    deletion: tuple[float, float] | None
    insertion: tuple[float, float] | None


@dataclass
class Report:
    """What a run did.

    Attributes:
        pictures: that could be read.
        rows: of maps.csv.
        failures: pictures that could not be read.
        scores: a row per map of a mineral that a mask shows.
        unscored: minerals that a mask shows and the model gave no map of.
        without: pictures without a mineral to show.
    """

    pictures: int = 0
    without: int = 0
    unscored: int = 0
    rows: list[Row] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)


class _Done(NamedTuple):
    rows: list[Row]
    scores: list[Score]
    unscored: int


def run(
    explainer: Explainer,
    inputs: Iterable[str | Path],
    folder: Path,
    asked: Asked = Asked(),
    *,
    threads: int | None = None,
    seen: Callable[[], object] = lambda: None,
) -> Report:
    """Explain photographs into a folder.

    Args:
        explainer: an open model with maps.
        inputs: as for `predict`.
        folder: made if it does not exist.
        asked: what to write.
        threads: pictures at once; None for one per processor.
        seen: called after each picture.

    Raises:
        DataError: if an input does not exist, a mask is none, or the folder cannot be written.
        BackendError: if the engine fails.
    """
    report = Report()
    try:
        with _Folder(folder) as out:
            work = _Work(explainer, asked, out)
            for result in _in_order(work, find_sources(inputs), threads or cpu_count()):
                _add(report, result)
                seen()
            out.finish(report)
    except OSError as error:
        raise DataError(f"cannot write into {folder}: {error.strerror or error}") from None
    return report


def _add(report: Report, result: _Done | Failure) -> None:
    if isinstance(result, Failure):
        report.failures.append(result)
        return
    report.pictures += 1
    report.without += not result.rows
    report.unscored += result.unscored
    report.rows += result.rows
    report.scores += result.scores


def _in_order(
    work: Callable[[Source | Failure], _Done | Failure], sources: Iterable[Source | Failure], threads: int
) -> Iterator[_Done | Failure]:
    """Results in the order of the sources, of which no more are drawn than there is work for."""
    source = iter(sources)
    waiting: deque[Future[_Done | Failure]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="explain") as pool:
        try:
            while True:
                waiting.extend(pool.submit(work, one) for one in islice(source, _AHEAD * threads - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


class _Work:
    """Everything that is done for one picture; several threads call it."""

    def __init__(self, explainer: Explainer, asked: Asked, out: _Folder) -> None:
        self.explainer = explainer
        self.asked = asked
        self.out = out

    def __call__(self, source: Source | Failure) -> _Done | Failure:
        if isinstance(source, Failure):
            return source
        explanation = explain(self.explainer, source)
        if isinstance(explanation, Failure):
            return explanation
        shown = self.asked.shown(explanation.maps)
        try:
            picture = _upright(source, explanation, self.asked.side) if shown else None
        except (ImageError, OSError) as error:  # gone or changed since it was looked at a moment ago
            return Failure(source.name, "read", one_line(error))
        rows = [self._draw(explanation, one, picture) for one in shown if picture]
        if shown and self.asked.with_maps:
            self._write_maps(explanation, shown)
        return _Done(rows, *self._scores(explanation))

    def _draw(self, explanation: Explanation, one: LabelMap, picture: PILImage.Image) -> Row:
        spec = self.explainer.contract.input
        place = _place(explanation.path) / _place(one.label.replace("/", "%2F"), ".png")
        overlay(picture, one.heat, spec).save(self.out.new(OVERLAYS, place), compress_level=1)
        at = peak(one.heat, (explanation.width, explanation.height), spec)
        path = Path(OVERLAYS, place).as_posix()
        return Row(explanation.path, one.label, one.probability, one.present, at, path)

    def _write_maps(self, explanation: Explanation, shown: Sequence[LabelMap]) -> None:
        size = explanation.width, explanation.height
        with self.out.new(MAPS, _place(explanation.path, ".npz")).open("wb") as file:
            np.savez_compressed(
                file,
                labels=np.array([one.label for one in shown]),
                probabilities=np.array([one.probability for one in shown], np.float32),
                maps=np.stack([one.heat for one in shown]),
                size=np.array(size),
                seen=np.array(visible_box(size, self.explainer.contract.input), np.float32),
            )

    def _scores(self, explanation: Explanation) -> tuple[list[Score], int]:
        """A score for each mineral that the mask shows and that has a map, and how many have none."""
        if self.asked.masks is None:
            return [], 0
        path = self.asked.masks / (Path(explanation.path).stem + ".png")
        if not path.is_file():
            return [], 0
        masks = read_masks(path)
        size = explanation.height, explanation.width
        if any(mask.shape != size for mask in masks.values()):
            raise DataError(f"the mask {path} is of another size than {explanation.path}, {size[1]} x {size[0]}")
        maps = {one.label: one for one in explanation.maps}
        scored = [self._score(explanation, maps[name], mask) for name, mask in masks.items() if name in maps]
        return scored, len(masks) - len(scored)

    def _score(self, explanation: Explanation, one: LabelMap, mask: np.ndarray[Any, Any]) -> Score:
        contract = self.explainer.contract
        pointing = point(one.heat, mask, contract.input)
        if not self.asked.with_deletion:
            return Score(one.label, pointing, None, None)
        label, maps = contract.labels.index(one.label), (one.heat, centre_first(one.heat.shape))
        removed, put_back = (
            tuple(measure(self._probabilities, explanation.pixels, heat, label, contract.input) for heat in maps)
            for measure in (deletion, insertion)
        )
        return Score(one.label, pointing, (removed[0], removed[1]), (put_back[0], put_back[1]))

    def _probabilities(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.explainer.infer(pixels).probabilities


def _upright(source: Source, explanation: Explanation, side: int) -> PILImage.Image:
    """The photograph as it is seen, reduced to at most `side` pixels a side."""
    content = source.read()
    scale = min(1.0, side / max(explanation.width, explanation.height))
    size = max(1, round(explanation.width * scale)), max(1, round(explanation.height * scale))
    picture = open_rgb(content, target=size) if isinstance(content, bytes) else content.convert("RGB")
    return picture if picture.size == size else picture.resize(size, PILImage.Resampling.LANCZOS)


def _place(name: str, suffix: str = "") -> Path:
    """Where what belongs to a name lies: never outside the folder (see `mirrored`)."""
    place = Path(mirrored(name))
    return place.with_name(place.name.removesuffix(".csv") + suffix)


class _Folder:
    """What a run writes, beside what an earlier one left until it is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._new = folder / ".explain.part"

    def __enter__(self) -> _Folder:
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._new, ignore_errors=True)

    def new(self, kind: str, place: Path) -> Path:
        """The name of a file to write, in a folder that exists."""
        path = self._new / kind / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, report: Report) -> None:
        """Take the place of what an earlier run left; the index comes last."""
        (self._folder / INDEX).unlink(missing_ok=True)
        for kind in (OVERLAYS, MAPS):
            shutil.rmtree(self._folder / kind, ignore_errors=True)
            with suppress(FileNotFoundError):  # nothing of that kind was written
                os.replace(self._new / kind, self._folder / kind)  # noqa: PTH105 - Path.replace does the same
        for name in (FAILURES, SCORES):
            (self._folder / name).unlink(missing_ok=True)
        if report.failures:
            with whole_file(self._folder / FAILURES) as file:
                table = FailuresCsv(file)
                for failure in report.failures:
                    table.write(failure)
        if report.scores:
            with whole_file(self._folder / SCORES) as file:
                file.write(json.dumps(summary(report), indent=2, ensure_ascii=False).encode() + b"\n")
        with whole_file(self._folder / INDEX) as file:
            file.write(_index(report.rows))


def _index(rows: Iterable[Row]) -> bytes:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    table.writerows(row.cells() for row in rows)
    return out.getvalue().encode("utf-8", "surrogateescape")


def summary(report: Report) -> dict[str, Any]:
    """The scores of all maps together and per mineral, as parts of one, ready for JSON."""
    minerals = sorted({score.mineral for score in report.scores})
    return {
        **_means(report.scores),
        "minerals_without_map": report.unscored,
        "minerals": {name: _means([score for score in report.scores if score.mineral == name]) for name in minerals},
    }


def _means(scores: Sequence[Score]) -> dict[str, Any]:
    """Off centre are the maps of minerals that do not lie in the middle: where knowing nothing scores 0."""
    off_centre = [score.pointing.hit for score in scores if not score.pointing.centre]
    means: dict[str, Any] = {
        "pointing": np.mean([score.pointing.hit for score in scores]),
        "pointing_off_centre": np.mean(off_centre) if off_centre else None,
        "pointing_centre": np.mean([score.pointing.centre for score in scores]),
        "pointing_anywhere": np.mean([score.pointing.anywhere for score in scores]),
    }
    for name in ("deletion", "insertion"):
        both = [pair for score in scores if (pair := getattr(score, name)) is not None]
        if both:
            means[name], means[f"{name}_centre"] = np.mean(both, axis=0)
    rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in means.items()}
    return {"maps": len(scores), "maps_off_centre": len(off_centre), **rounded}
