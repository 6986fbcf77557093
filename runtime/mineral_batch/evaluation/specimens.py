"""Judging specimens in place of their images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from mineral_batch.evaluation.evaluate import Joined
from mineral_batch.results.manifest import parse_manifest
from mineral_batch.results.predictions import Predictions
from mineral_batch.results.schema import RUN_MANIFEST
from mineral_batch.results.specimens import combined, specimen_rule


def by_specimen(joined: Joined, rule: str, thresholds: Mapping[str, float]) -> Joined:
    """Return the specimens of the images, in the order of their first ones.

    A label is true of a specimen where it is of one of its images. Its probabilities are those of all its images, as in
    specimens.csv, also of those without labels; not of those of other splits, which the model may have seen.

    Args:
        joined: the images, with those that have no labels (`join(..., keep_unlabeled=True)`).
        rule: as `predict --specimen` takes it.
        thresholds: by label, at which it is called present; one without is where an image of the specimen says so.

    Raises:
        DataError: as `results.specimens.specimen_rule` does.
    """
    table, name = joined.predictions, specimen_rule(rule)
    members: dict[str, list[int]] = {}
    for index, path in enumerate(table.paths):
        members.setdefault(name(path) or path, []).append(index)
    labeled = {specimen: list(rows) for specimen, rows in members.items()}
    every = table if joined.beside is None else table.extended(joined.beside)
    for index, path in enumerate(every.paths[len(table.paths) :], len(table.paths)):
        if (specimen := name(path)) in members:
            members[specimen].append(index)
    scores = np.stack([combined(every.scores[rows]) for rows in members.values()])
    called = np.stack([every.called[rows].any(axis=0) for rows in members.values()])
    for column, label in enumerate(table.labels):
        if label in thresholds:
            called[:, column] = scores[:, column] >= thresholds[label]
    images = sum(map(len, members.values()))
    without = images - len(table.paths)
    note = f"The figures are of {len(members)} specimens, each judged by all its images ({images}"
    note += f", {without} of them without labels)" if without else ")"
    return replace(
        joined,
        predictions=Predictions(tuple(members), table.labels, scores, called, table.ignored),
        truth=np.stack([joined.truth[rows].any(axis=0) for rows in labeled.values()]),
        notes=(*joined.notes, note),
        beside=None,
        noun="specimen",
        images=images,
        others=tuple(_union(joined.others[row] for row in rows) for rows in labeled.values()),
    )


def _union(names: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def thresholds_of_run(predictions: Path) -> dict[str, float]:
    """The thresholds by label in the run.json of a folder, or beside a table; empty if it cannot be read."""
    folder = predictions if predictions.is_dir() else predictions.parent
    try:
        manifest = parse_manifest((folder / RUN_MANIFEST).read_bytes())
    except OSError:
        return {}
    return {} if isinstance(manifest, str) else dict(zip(manifest.labels, manifest.thresholds, strict=False))
