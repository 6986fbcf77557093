"""Features of photographs, computed once and kept in a file that survives a kill."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from mineral_batch.errors import DataError
from mineral_batch.files import write_errors
from mineral_batch.images.decode import load_image
from mineral_batch.model.onnx_file import graph_digest
from mineral_batch.system import cpu_count
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure, Pixels
from mineral_train.adapt.graph import LinearHead
from mineral_train.data.duplicates import THUMBNAIL
from mineral_train.data.manifest import Row

_BATCH = 16
_FORMAT = b"mineral-batch features 1\n"
_KEY_BYTES = 16


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
    """The features of one model in a file that only grows: a record for each photograph, each with a checksum.

    A run that is killed loses the batch it was computing. A photograph that changed has another key and is computed
    again. Records are read through a memory map, so that 100,000 of them need no memory of their own.

    Args:
        folder: created if missing; each model has a file of its own in it.
        head: the model.

    Raises:
        DataError: if the folder or the file cannot be written.
    """

    def __init__(self, folder: Path, head: LinearHead) -> None:
        digest, channels = graph_digest(head.path), head.weights.shape[1]
        self.path = folder / f"{digest[:16]}.features"
        self._record = np.dtype(
            [
                ("key", f"V{_KEY_BYTES}"),
                ("vector", "<f4", (channels,)),
                ("thumbnail", "u1", THUMBNAIL.shape),
                ("checksum", "<u4"),
            ]
        )
        self._header = _FORMAT + f"{digest} {channels}\n".encode()
        with write_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._make_whole()
        self._places: dict[bytes, int] = {}
        self._index()

    def _make_whole(self) -> None:
        """Begin the file, or cut off a record that a kill left incomplete."""
        size = self.path.stat().st_size if self.path.exists() else 0
        with self.path.open("r+b" if size else "wb") as file:
            if size == 0 or file.read(len(self._header)) != self._header:
                file.seek(0)
                file.truncate()
                file.write(self._header)
            else:
                file.truncate(size - (size - len(self._header)) % self._record.itemsize)

    def _index(self) -> None:
        """Find the records that were added since, and check them."""
        records = self._records()
        for place in range(len(self._places), len(records)):
            record = records[place]
            content = record.tobytes()
            if zlib.crc32(content[:-4]) == int(record["checksum"]):
                self._places[content[:_KEY_BYTES]] = place

    def _records(self) -> NDArray[np.void]:
        if self.path.stat().st_size <= len(self._header):
            return np.empty(0, self._record)
        return np.memmap(self.path, self._record, "r", offset=len(self._header))

    def key(self, path: Path) -> bytes:
        """Identify a photograph's content, without reading it; empty for one that is not there."""
        try:
            found = path.stat()
        except OSError:
            return b""
        text = f"{path}|{found.st_size}|{found.st_mtime_ns}"
        return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_KEY_BYTES).digest()

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], vectors: NDArray[np.float32], thumbs: Sequence[Pixels]) -> None:
        """Append the features of photographs to the file, in one write.

        Args:
            keys: N, what tells a photograph from others.
            vectors: (N, D), what the model sees in them.
            thumbs: N small images (H, W, 3) uint8.

        Raises:
            DataError: if it cannot be written.
        """
        records = np.zeros(len(keys), self._record)
        for record, key, vector, thumb in zip(records, keys, vectors, thumbs, strict=True):
            record["key"], record["vector"], record["thumbnail"] = key, vector, thumb
            record["checksum"] = zlib.crc32(record.tobytes()[:-4])
        with write_errors(self.path), self.path.open("ab", buffering=0) as file:
            written = file.write(records.tobytes())
            if written != records.nbytes:  # a disk that became full in the middle
                os.ftruncate(file.fileno(), os.fstat(file.fileno()).st_size - (written or 0))
                raise DataError(f"cannot write {self.path}: the disk is full; free space and start again")

    def read(self, keys: Sequence[bytes]) -> tuple[NDArray[np.float32], Pixels]:
        """Read the vectors (N, C) and thumbnails (N, 16, 18, 3) of photographs that are in it."""
        self._index()
        records, places = self._records(), [self._places[key] for key in keys]
        return np.array(records["vector"][places]), np.array(records["thumbnail"][places])

    def refresh(self) -> None:
        """Take in what was added."""
        self._index()


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
    missing = [place for place, key in enumerate(keys) if key not in cache]
    failures: list[Failure] = []
    for _ in progress(_computed(head, rows, keys, missing, cache, failures), len(missing)):
        pass
    cache.refresh()
    good = [place for place, key in enumerate(keys) if key in cache]
    vectors, thumbs = cache.read([keys[place] for place in good])
    return Features(tuple(rows[place] for place in good), vectors, thumbs, tuple(failures))


def _computed(
    head: LinearHead,
    rows: Sequence[Row],
    keys: Sequence[bytes],
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
            cache.add([keys[place] for place in images], vectors, [_thumbnail(pixels) for pixels in images.values()])
        yield from (place for place, _ in group)


def _thumbnail(pixels: Pixels) -> Pixels:
    """Reduce the model's input: 18 x 16 pixels do not show whether it was 256 pixels or the photograph itself."""
    size = (THUMBNAIL.width, THUMBNAIL.height)
    return np.asarray(PILImage.fromarray(pixels).resize(size, PILImage.Resampling.BILINEAR), np.uint8)
