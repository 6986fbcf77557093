"""A run of `mineral-batch explain`: the maps of many images as overlays, numbers and scores in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image as PILImage

from mineral_batch.errors import DataError, ImageError, one_line
from mineral_batch.explain.explainer import explain
from mineral_batch.explain.folder import MapRow, OutputFolder, maps_path, overlay_path
from mineral_batch.explain.maps import peak
from mineral_batch.explain.overlay import overlay
from mineral_batch.explain.scores import (
    Bools,
    Score,
    center_map,
    deletion,
    insertion,
    mean_scores,
    pointing_game,
    read_masks,
)
from mineral_batch.files import write_errors
from mineral_batch.images.decode import open_rgb
from mineral_batch.images.discover import find_sources
from mineral_batch.images.geometry import visible_box
from mineral_batch.images.limits import MAX_PIXELS
from mineral_batch.images.lists import NameList
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mineral_batch.explain.explainer import Explainer
    from mineral_batch.explain.maps import Explanation, LabelMap
    from mineral_batch.types import Pixels, Probabilities, Source


@dataclass(frozen=True)
class ExplainOptions:
    """What to show and write.

    Attributes:
        top: how many minerals of an image to show at most; None: as many as the model gives maps.
        minimum: show minerals from this probability; None: from each mineral's own threshold.
        minerals: show only these; empty: all.
        side: the longest side of an overlay, pixels.
        write_maps: also write the maps as numbers.
        masks: folder of masks to score by; None: no scores.
        score_deletion: also score by deletion and insertion.
        max_pixels: an image with more is a failure.
    """

    top: int | None = None
    minimum: float | None = None
    minerals: tuple[str, ...] = ()
    side: int = 1600
    write_maps: bool = False
    masks: Path | None = None
    score_deletion: bool = False
    max_pixels: int = MAX_PIXELS

    def select(self, maps: Sequence[LabelMap]) -> list[LabelMap]:
        """Select from an image's maps."""
        named = [one for one in maps if not self.minerals or one.label in self.minerals]
        probable = [one for one in named if (one.present if self.minimum is None else one.probability >= self.minimum)]
        return probable[: self.top]


@dataclass
class ExplainResult:
    """What a run did.

    Attributes:
        images: how many could be read.
        images_without_map: how many of them have no mineral to show.
        minerals_without_map: how many minerals of the masks the model gave no map.
        rows: of maps.csv.
        failures: images that could not be read.
        scores: one per map of a mineral that a mask shows.
    """

    images: int = 0
    images_without_map: int = 0
    minerals_without_map: int = 0
    rows: list[MapRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    @property
    def mean_scores(self) -> dict[str, Any] | None:
        """The content of scores.json; None without masks."""
        return mean_scores(self.scores, self.minerals_without_map) if self.scores else None


class _ImageResult(NamedTuple):
    rows: list[MapRow]
    scores: list[Score]
    minerals_without_map: int


def run(
    explainer: Explainer,
    inputs: Iterable[str | Path | NameList],
    folder: Path,
    options: ExplainOptions = ExplainOptions(),
    *,
    threads: int | None = None,
    on_image: Callable[[], object] = lambda: None,
) -> ExplainResult:
    """Explain images into a folder.

    Args:
        explainer: an open model with maps.
        inputs: as for `predict`.
        folder: created if it does not exist.
        options: what to show and write.
        threads: images at once; None: one per CPU.
        on_image: called after each image.

    Raises:
        DataError: if an input does not exist, a mask is invalid, or the folder cannot be written.
        BackendError: if the engine fails.
    """
    result = ExplainResult()
    with write_errors(folder), OutputFolder(folder) as out:
        work = _Work(explainer, options, out)
        for one in bounded_map(work, find_sources(inputs), threads or cpu_count(), "explain"):
            _add(result, one)
            on_image()
        out.finish(result.rows, result.failures, result.mean_scores)
    return result


def _add(result: ExplainResult, one: _ImageResult | Failure) -> None:
    if isinstance(one, Failure):
        result.failures.append(one)
        return
    result.images += 1
    result.images_without_map += not one.rows
    result.minerals_without_map += one.minerals_without_map
    result.rows += one.rows
    result.scores += one.scores


class _Work:
    """Everything that is done for one image; several threads call it."""

    def __init__(self, explainer: Explainer, options: ExplainOptions, out: OutputFolder) -> None:
        self.explainer = explainer
        self.spec = explainer.contract.input
        self.options = options
        self.out = out

    def __call__(self, source: Source | Failure) -> _ImageResult | Failure:
        if isinstance(source, Failure):
            return source
        explanation = explain(self.explainer, source, max_pixels=self.options.max_pixels)
        if isinstance(explanation, Failure):
            return explanation
        selected = self.options.select(explanation.maps)
        try:
            photo = _upright(source, explanation, self.options) if selected else None
        except (ImageError, OSError) as error:  # the file is gone or has changed since it was decoded
            return Failure(source.name, "read", one_line(error))
        rows = [self._draw(explanation, one, photo) for one in selected if photo]
        if selected and self.options.write_maps:
            self._write_maps(explanation, selected)
        return _ImageResult(rows, *self._score(explanation))

    def _draw(self, explanation: Explanation, one: LabelMap, photo: PILImage.Image) -> MapRow:
        place = overlay_path(explanation.path, one.label)
        overlay(photo, one.heat, self.spec).save(self.out.new_file(place), compress_level=1)
        at = peak(one.heat, (explanation.width, explanation.height), self.spec)
        return MapRow(explanation.path, one.label, one.probability, one.present, at, place.as_posix())

    def _write_maps(self, explanation: Explanation, selected: Sequence[LabelMap]) -> None:
        size = explanation.width, explanation.height
        with self.out.new_file(maps_path(explanation.path)).open("wb") as file:
            np.savez_compressed(
                file,
                labels=np.array([one.label for one in selected]),
                probabilities=np.array([one.probability for one in selected], np.float32),
                maps=np.stack([one.heat for one in selected]),
                size=np.array(size),
                seen=np.array(visible_box(size, self.spec), np.float32),
            )

    def _score(self, explanation: Explanation) -> tuple[list[Score], int]:
        """Score each mineral that the mask shows and that has a map; count those without a map."""
        if self.options.masks is None:
            return [], 0
        path = self.options.masks / (Path(explanation.path).stem + ".png")
        if not path.is_file():
            return [], 0
        masks = read_masks(path)
        width, height = explanation.width, explanation.height
        if any(mask.shape != (height, width) for mask in masks.values()):
            raise DataError(f"the mask {path} does not have the size of {explanation.path}, {width} x {height}")
        maps = {one.label: one for one in explanation.maps}
        scores = [self._score_map(explanation, maps[name], mask) for name, mask in masks.items() if name in maps]
        return scores, len(masks) - len(scores)

    def _score_map(self, explanation: Explanation, one: LabelMap, mask: Bools) -> Score:
        pointing = pointing_game(one.heat, mask, self.spec)
        if not self.options.score_deletion:
            return Score(one.label, pointing, None, None)
        label, maps = self.explainer.contract.labels.index(one.label), (one.heat, center_map(one.heat.shape))
        areas = [
            tuple(measure(self._probabilities, explanation.pixels, heat, label, self.spec) for heat in maps)
            for measure in (deletion, insertion)
        ]
        (removed, removed_baseline), (inserted, inserted_baseline) = areas
        return Score(one.label, pointing, (removed, removed_baseline), (inserted, inserted_baseline))

    def _probabilities(self, pixels: Pixels) -> Probabilities:
        return self.explainer.infer(pixels).probabilities


def _upright(source: Source, explanation: Explanation, options: ExplainOptions) -> PILImage.Image:
    """Decode the photograph upright, reduced to at most `options.side` pixels a side."""
    content = source.read()
    scale = min(1.0, options.side / max(explanation.width, explanation.height))
    size = max(1, round(explanation.width * scale)), max(1, round(explanation.height * scale))
    if isinstance(content, bytes):
        photo = open_rgb(content, target=size, max_pixels=options.max_pixels)
    else:
        photo = content.convert("RGB")
    return photo if photo.size == size else photo.resize(size, PILImage.Resampling.LANCZOS)
