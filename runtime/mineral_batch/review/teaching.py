"""The order that teaches most while people already review: first by the model's answers, then by its features."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from mineral_batch.errors import BackendError, DataError
from mineral_batch.review import order

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mineral_batch.evaluation.metrics import Floats
    from mineral_batch.review.features import FeatureStore
    from mineral_batch.review.reading import Reader

_log = logging.getLogger("mineral_batch")


class TeachingOrder:
    """Editions of the order: 0 spreads over the model's answers, 1 over its features, once these are computed.

    An edition stays as it is, so that a page that began with one goes on with it.

    Args:
        scores: (N, L) probabilities.
        paths: N.
        features: of the run's model; None without it, and then there is edition 0 only.
        reader: finds the photographs.
    """

    def __init__(self, scores: Floats, paths: Sequence[str], features: FeatureStore | None, reader: Reader) -> None:
        self._scores, self._features, self._reader = scores, features, reader
        self._candidates = order.candidates(scores)
        self._names = [paths[row] for row in self._candidates]
        self._editions: list[NDArray[np.intp]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._compute, name="features", daemon=True)

    def start(self) -> None:
        """Begin to compute the features, in a thread."""
        if self._features is not None:
            self._thread.start()

    def close(self) -> None:
        """Stop computing."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._features is not None:
            self._features.close()

    def wait(self) -> None:
        """Wait until the features are computed."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def edition(self) -> int:
        """The newest edition."""
        return max(0, len(self._editions) - 1)

    def rows(self, edition: int | None = None) -> NDArray[np.intp]:
        """(N,) indices of all images in one edition; in the newest for None, or for one that there is not."""
        with self._lock:
            if not self._editions:
                vectors = order.answers(self._scores[self._candidates])
                self._editions.append(order.teaches(self._scores, vectors, self._candidates))
            is_there = edition is not None and 0 <= edition < len(self._editions)
            return self._editions[edition if is_there else -1]  # type: ignore[index]

    def _compute(self) -> None:
        assert self._features is not None
        try:
            self._features.compute(self._names, self._reader, self._stop)
            places, vectors = self._features.vectors(self._names)
        except (BackendError, DataError) as error:
            _log.warning("the order goes by the model's answers, not by its features: %s", error)
            return
        if len(places) and not self._stop.is_set():
            found = order.teaches(self._scores, vectors, self._candidates[places])
            self.rows()  # edition 0 comes first
            with self._lock:
                self._editions.append(found)
