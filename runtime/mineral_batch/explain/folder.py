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

from mineral_batch.files import atomic_file, write_file
from mineral_batch.results.csv import write_csv
from mineral_batch.results.per_image import mirrored
from mineral_batch.results.schema import FAILURES
from mineral_batch.results.write import FailuresCsv
from mineral_batch.results.written import is_nothing, note_written, require_replaceable, require_unedited

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mineral_batch.types import Failure

INDEX, OVERLAYS, MAPS, SCORES = "maps.csv", "overlays", "maps", "scores.json"
#: All that may be in the folder, the failures apart.
NAMES = (INDEX, OVERLAYS, MAPS, SCORES)
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
        self._is_replacing = False

    def __enter__(self) -> OutputFolder:
        self._require_replaceable()
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True)
        return self

    def _require_replaceable(self) -> None:
        """Refuse to replace what is foreign or was edited; after a run that was cut short nobody knows what is."""
        require_unedited(self._folder, self._folder / INDEX, "explain")
        if not self._new.is_dir():
            for name in (*NAMES, FAILURES):
                require_replaceable(self._folder, self._folder / name, "explain")

    def __exit__(self, *_: object) -> None:
        if not self._is_replacing:  # else the next run may replace what is there
            shutil.rmtree(self._new, ignore_errors=True)

    def new_file(self, place: Path) -> Path:
        """Return the path of a file to write, in a folder that exists."""
        path = self._new / place
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, rows: Iterable[MapRow], failures: Sequence[Failure], scores: Mapping[str, Any] | None) -> None:
        """Replace what an earlier run left; the index is removed first and written last."""
        self._is_replacing = True
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
        write_csv(self._folder / INDEX, _COLUMNS, (row.cells() for row in rows))
        note_written(
            self._folder, *(path for name in (*NAMES, FAILURES) if not is_nothing(path := self._folder / name))
        )
        self._is_replacing = False
