"""The maps that `mineral-batch explain` made of a run's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mineral_batch.errors import DataError
from mineral_batch.evaluation.labels import match_paths
from mineral_batch.explain.folder import INDEX
from mineral_batch.results.csv import open_csv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mineral_batch.results.read import Results

# Two engines or precisions of one model differ by less; two models by more.
_SAME = 0.1


class Overlay(NamedTuple):
    """One map over its photograph: its label (index) and its file."""

    label: int
    file: Path


@dataclass(frozen=True)
class Explained:
    """The maps in an output folder of `explain` that belong to a run.

    Attributes:
        overlays: row of the predictions -> its maps, the most probable mineral first.
        others: how many maps are of images that are not in the run.
    """

    overlays: Mapping[int, tuple[Overlay, ...]]
    others: int

    @property
    def count(self) -> int:
        """The number of maps of the run's images."""
        return sum(map(len, self.overlays.values()))


def read_explained(folder: Path, results: Results) -> Explained:
    """Read the index of a folder of `explain` and match its images to those of a run, as `labels.match_paths` does.

    Raises:
        DataError: if the index is missing or damaged, none of its images is in the run, or the maps are of another
            model.
    """
    rows = _read_index(folder / INDEX)
    matches = match_paths(results.predictions.paths, list(dict.fromkeys(row["path"] for row in rows))).index
    if rows and not matches:
        raise DataError(
            f"none of the {len(rows)} maps in {folder} is of an image in {results.table}; the first is of "
            f"{rows[0]['path']}: run mineral-batch explain on the images of this run"
        )
    found: dict[int, list[Overlay]] = {}
    for row in rows:
        if row["path"] in matches:
            index = matches[row["path"]]
            found.setdefault(index, []).append(Overlay(_label(folder, row, index, results), folder / row["overlay"]))
    overlays = {index: tuple(found[index]) for index in sorted(found)}
    return Explained(overlays, len(rows) - sum(map(len, overlays.values())))


def _read_index(path: Path) -> list[dict[str, str]]:
    missing = f"no {INDEX} in {path.parent}: name the output folder of mineral-batch explain"
    with open_csv(path, ("path", "mineral", "probability", "overlay"), missing=missing) as table:
        return list(table.dicts())


def _label(folder: Path, row: dict[str, str], index: int, results: Results) -> int:
    """Return the index of a row's mineral, if the run gives it about the same probability."""
    name, table = row["mineral"], results.predictions
    said = float(table.scores[index, table.labels.index(name)]) if name in table.labels else None
    try:
        is_same = said is not None and abs(float(row["probability"]) - said) <= _SAME
    except ValueError:
        problem = f"{folder / INDEX} has the probability '{row['probability']}'"
        raise DataError(f"{problem}: run mineral-batch explain again") from None
    if not is_same:
        theirs = f"{said:.2f}" if said is not None else "nothing"
        raise DataError(
            f"the maps in {folder} are of another model than {results.table}: they say {name} {row['probability']} of "
            f"{row['path']}, the run says {theirs}; give both commands the same --model"
        )
    return table.labels.index(name)
