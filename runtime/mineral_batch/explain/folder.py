"""The output folder of `mineral-batch explain`.

| in the folder | content |
|---|---|
| maps.csv | a row per map: `path`, `mineral`, `probability`, `present` (0 or 1), `peak_x`, `peak_y`, `overlay` |
| overlays/ | a PNG per map, in a copy of the tree with a folder for each image |
| maps/ | on request: an .npz per image with the maps as numbers |
| scores.json | with masks: the pointing game, and on request deletion and insertion |
| failures.csv | a row per image that could not be read, as `predict` writes it; absent if there is none |
| written.json | the SHA-256 of maps.csv, by which an edited one is known |

`peak_x` and `peak_y` are pixels of the upright image, empty for a map of zeros.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.files import atomic_file, write_file
from mineral_batch.results.csv import csv_line, write_csv
from mineral_batch.results.per_image import mirrored
from mineral_batch.results.schema import FAILURES
from mineral_batch.results.write import FailuresCsv
from mineral_batch.results.written import is_noted, replacing, require_unedited

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mineral_batch.types import Failure

INDEX, OVERLAYS, MAPS, SCORES = "maps.csv", "overlays", "maps", "scores.json"
_COLUMNS = ("path", "mineral", "probability", "present", "peak_x", "peak_y", "overlay")


class MapRow(NamedTuple):
    """One row of maps.csv."""

    path: str
    mineral: str
    probability: float
    present: bool
    peak: tuple[float, float] | None
    overlay: str

    def cells(self) -> list[str]:
        """Return the row as text."""
        x, y = ("", "") if self.peak is None else (f"{value:.1f}" for value in self.peak)
        return [self.path, self.mineral, f"{self.probability:.7g}", str(int(self.present)), x, y, self.overlay]


def overlay_path(image: str, mineral: str) -> Path:
    """Return where in the folder the overlay of one map goes; never outside the folder (see `mirrored`)."""
    return OVERLAYS / _mirror(image) / _mirror(mineral.replace("/", "%2F"), ".png")


def maps_path(image: str) -> Path:
    """Return where in the folder the maps of one image go as numbers."""
    return MAPS / _mirror(image, ".npz")


def _mirror(name: str, suffix: str = "") -> Path:
    place = Path(mirrored(name))
    return place.with_name(place.name.removesuffix(".csv") + suffix)


class OutputFolder:
    """What a run writes, beside what an earlier run left until this one is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._new = folder / ".explain.part"

    def __enter__(self) -> OutputFolder:
        self._require_replaceable()
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True)
        return self

    def _require_replaceable(self) -> None:
        """Refuse to replace files and folders of these names that are not of an earlier run, or of one cut short."""
        index = self._folder / INDEX
        require_unedited(self._folder, index, "explain")
        if self._new.is_dir() or self._is_index(index) or is_noted(self._folder, index):
            return
        for name in (INDEX, OVERLAYS, MAPS, SCORES, FAILURES):
            if (self._folder / name).exists():
                raise DataError(
                    f"{self._folder / name} is there already and was not written by explain: name another folder"
                )

    @staticmethod
    def _is_index(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                return file.readline().rstrip() == csv_line(_COLUMNS).encode()
        except OSError:
            return False

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._new, ignore_errors=True)
        if not self._is_index(self._folder / INDEX) and (self._folder / OVERLAYS).exists():
            with suppress(OSError):  # cut short while it replaced: the next run may replace the rest
                self._new.mkdir()

    def new_file(self, place: Path) -> Path:
        """Return the path of a file to write, in a folder that exists."""
        path = self._new / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, rows: Iterable[MapRow], failures: Sequence[Failure], scores: Mapping[str, Any] | None) -> None:
        """Replace what an earlier run left; the index is removed first and written last."""
        (self._folder / INDEX).unlink(missing_ok=True)
        for kind in (OVERLAYS, MAPS):
            shutil.rmtree(self._folder / kind, ignore_errors=True)
            with suppress(FileNotFoundError):  # nothing of that kind was written
                os.replace(self._new / kind, self._folder / kind)  # noqa: PTH105 - Path.replace does the same
        for name in (FAILURES, SCORES):
            (self._folder / name).unlink(missing_ok=True)
        if failures:
            with atomic_file(self._folder / FAILURES) as file:
                table = FailuresCsv(file)
                for failure in failures:
                    table.write(failure)
        if scores:
            write_file(self._folder / SCORES, json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
        with replacing(self._folder, self._folder / INDEX):
            write_csv(self._folder / INDEX, _COLUMNS, (row.cells() for row in rows))
