"""Features of photographs, computed once and kept in a file."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from mineral_batch.files import write_file
from mineral_batch.images.decode import load_image
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure, Pixels
from mineral_train.adapt.graph import LinearHead
from mineral_train.data.duplicates import THUMBNAIL
from mineral_train.data.manifest import Row

_BATCH = 16
_SAVE_EVERY = 60.0  # seconds


@dataclass(frozen=True)
class Features:
    """What a model's body sees in N photographs.

    Attributes:
        rows: the photographs that could be decoded.
        vectors: (N, C) float32, the input of the model's last layer.
        thumbnails: (N, 16, 18, 3) uint8, by which near-duplicates are found.
        failures: the photographs that could not be decoded.
    """

    rows: tuple[Row, ...]
    vectors: NDArray[np.float32]
    thumbnails: Pixels
    failures: tuple[Failure, ...]


class FeatureCache:
    """A file of features by photograph and model; a photograph that changed is computed again."""

    def __init__(self, path: Path, head: LinearHead) -> None:
        self._path = path
        self._model = graph_digest(head.path)
        self._entries: dict[str, tuple[NDArray[np.float32], Pixels]] = {}
        self._saved = time.monotonic()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                keys, vectors, thumbs = (arrays[name] for name in ("keys", "vectors", "thumbnails"))
            entries = zip(keys.tolist(), vectors, thumbs, strict=True)
            # Of another model the vectors are useless here, and of another length.
            self._entries = {key: (v, t) for key, v, t in entries if key.startswith(f"{self._model}|")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # none yet, or damaged: it is only a cache

    def key(self, path: Path) -> str:
        """Identify a photograph's content and the model, without reading it."""
        try:
            found = path.stat()
        except OSError:
            return ""
        return f"{self._model}|{path}|{found.st_size}|{found.st_mtime_ns}"

    def get(self, key: str) -> tuple[NDArray[np.float32], Pixels] | None:
        """Return the features and the thumbnail of a photograph, None if they are not kept."""
        return self._entries.get(key)

    def put(self, key: str, vector: NDArray[np.float32], thumbnail: Pixels) -> None:
        """Keep the features of a photograph; once a minute everything is written to the file."""
        self._entries[key] = vector, thumbnail
        if time.monotonic() - self._saved > _SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the file.

        Raises:
            DataError: if it cannot be written.
        """
        if not self._entries:
            return
        buffer = io.BytesIO()
        vectors, thumbs = zip(*self._entries.values(), strict=True)
        np.savez(buffer, keys=list(self._entries), vectors=np.stack(vectors), thumbnails=np.stack(thumbs))
        write_file(self._path, buffer.getvalue())
        self._saved = time.monotonic()


def extract(
    head: LinearHead, rows: Sequence[Row], cache: FeatureCache, progress: Callable[[Iterable[int], int], Iterable[int]]
) -> Features:
    """Compute the features of photographs, or take them from the cache.

    Args:
        head: the model.
        rows: the photographs.
        cache: kept up to date, also if the computation is interrupted.
        progress: wraps the places of the photographs that are computed; gets their number.
    """
    keys = [cache.key(row.path) for row in rows]
    missing = [place for place, key in enumerate(keys) if cache.get(key) is None]
    failures: list[Failure] = []
    try:
        for _ in progress(_computed(head, rows, keys, missing, cache, failures), len(missing)):
            pass
    finally:
        if missing:
            cache.save()
    entries = [(row, cache.get(key)) for row, key in zip(rows, keys, strict=True)]
    good = [(row, *entry) for row, entry in entries if entry is not None]
    vectors = np.stack([vector for _, vector, _ in good]) if good else np.empty((0, head.weights.shape[1]), np.float32)
    thumbs = np.stack([thumb for _, _, thumb in good]) if good else np.empty((0, *THUMBNAIL.shape), np.uint8)
    return Features(tuple(row for row, _, _ in good), vectors, thumbs, tuple(failures))


def _computed(
    head: LinearHead,
    rows: Sequence[Row],
    keys: Sequence[str],
    places: Sequence[int],
    cache: FeatureCache,
    failures: list[Failure],
) -> Iterator[int]:
    """Decode in threads, infer in batches; yields each place when it is done."""
    if not places:
        return
    session, spec = head.feature_session(), head.contract.input
    pixels_name = session.get_inputs()[0].name
    decoded = bounded_map(lambda place: (place, load_image(rows[place].path, spec)), places, cpu_count(), "decode")
    while group := list(islice(decoded, _BATCH)):
        images = {}
        for place, image in group:
            if isinstance(image, Failure):
                failures.append(image)
            else:
                images[place] = image.pixels
        if images:
            (vectors,) = session.run(None, {pixels_name: np.stack(list(images.values()))})
            for (place, pixels), vector in zip(images.items(), vectors, strict=True):
                cache.put(keys[place], vector, _thumbnail(pixels))
        yield from (place for place, _ in group)


def _thumbnail(pixels: Pixels) -> Pixels:
    """Reduce the model's input: 18 x 16 pixels do not show whether it was 256 pixels or the photograph itself."""
    size = (THUMBNAIL.width, THUMBNAIL.height)
    return np.asarray(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.BILINEAR), np.uint8)
