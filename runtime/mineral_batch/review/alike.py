"""Images that look alike to the model by its features, for labels that look wrong."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from mineral_batch.evaluation.audit import Suspect
    from mineral_batch.evaluation.evaluate import Joined
    from mineral_batch.review.features import FeatureStore
    from mineral_batch.review.reading import Reader

#: Images of a suggested label among which the nearest are looked for: those that the model is surest of.
AMONG = 200
_SHOWN = 3
_GROUP = 32


def needed(joined: Joined, found: Sequence[Suspect]) -> list[int]:
    """The rows whose features are needed: the suspects, and the images of each suggested label."""
    suggested = dict.fromkeys(suspect.suggested for suspect in found)
    others = (row for label in suggested for row in _images(joined, label).tolist())
    return list(dict.fromkeys([*(suspect.row for suspect in found), *others]))


def compute(paths: Sequence[str], store: FeatureStore, reader: Reader, seen: Callable[[int], object]) -> None:
    """Compute the features that are missing.

    Args:
        paths: of the images.
        store: keeps them.
        reader: finds the images.
        seen: called with how many were done.

    Raises:
        BackendError: if the model cannot be run.
        DataError: if the disk refuses them.
    """
    for start in range(0, len(paths), _GROUP):
        group = paths[start : start + _GROUP]
        store.compute(group, reader, threading.Event())
        seen(len(group))


def by_features(joined: Joined, found: Sequence[Suspect], store: FeatureStore) -> Iterator[Suspect]:
    """Yield the suspects with the images of the suggested label whose features have the highest cosine to theirs.

    A suspect whose image cannot be read keeps those that are alike by the model's answers.

    Raises:
        DataError: if the stored features are damaged.
    """
    rows = needed(joined, found)
    places, vectors = store.vectors([joined.predictions.paths[row] for row in rows])
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    index = {rows[place]: number for number, place in enumerate(places.tolist())}
    for suspect in found:
        others = [row for row in _images(joined, suspect.suggested).tolist() if row in index and row != suspect.row]
        if suspect.row not in index or not others:
            yield suspect
            continue
        cosine = unit[[index[row] for row in others]] @ unit[index[suspect.row]]
        nearest = np.argsort(-cosine, kind="stable")[:_SHOWN]
        yield replace(suspect, alike=tuple(others[number] for number in nearest))


def _images(joined: Joined, label: str) -> NDArray[np.intp]:
    """The images with a label, the surest ones first, at most `AMONG`."""
    column = joined.predictions.labels.index(label)
    rows = np.flatnonzero(joined.truth[:, column])
    order: NDArray[np.intp] = rows[np.argsort(-joined.predictions.scores[rows, column], kind="stable")]
    return order[:AMONG]
