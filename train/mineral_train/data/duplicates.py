"""Find images that are the same: byte for byte, or after scaling, recompression or a small crop.

Duplicates in two splits would make the test figure too good. Two images are near-duplicates if their 64-bit difference
hashes differ in at most 6 bits AND their 18 × 16 thumbnails correlate at 0.95 or more. The hash alone is not enough for
specimens, which lie in the middle of a plain ground: among 2,919 photographs, 163 pairs were within 6 bits, and the 8
of them that were the same image are those that the correlation confirmed. Its recall on altered images is
measured in tests/train/data/test_duplicates.py.
"""

from __future__ import annotations

import hashlib
import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mineral_batch.images.decode import load_image
from mineral_batch.model.contract import InputSpec
from mineral_batch.threads import bounded_map
from mineral_batch.types import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
    from pathlib import Path

    from mineral_batch.types import Pixels

Links = NDArray[np.int64]

#: The thumbnails that are compared: 864 bytes each, 173 MB for 200,000.
THUMBNAIL = InputSpec(height=16, width=18, resize="squash", interpolation="bilinear")

MAX_DISTANCE = 6
MIN_CORRELATION = 0.95

_BLOCK = 8192  # pairs of thumbnails compared at a time: 28 MB as float32


def thumbnails(paths: Sequence[Path], threads: int) -> Iterator[Pixels | Failure]:
    """Decode every image, which also shows whether it can be decoded; (16, 18, 3) uint8 each, in order."""
    return bounded_map(_thumbnail, paths, threads)


def _thumbnail(path: Path) -> Pixels | Failure:
    image = load_image(path, THUMBNAIL)
    return image if isinstance(image, Failure) else image.pixels


def identical_files(paths: Sequence[Path]) -> Links:
    """(P, 2) indices that link files with the same bytes.

    Only files that share their size with another are read. One that cannot be read is identical to none.
    """
    sizes = classes((_size(path), i) for i, path in enumerate(paths))
    suspects = [i for members in sizes if len(members) > 1 for i in members]
    return link_classes(classes((_digest(paths[i]), i) for i in suspects))


def _size(path: Path) -> object:
    return _or_unique(lambda: path.stat().st_size)


def _digest(path: Path) -> object:
    def digest() -> bytes:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()

    return _or_unique(digest)


def _or_unique(value: Callable[[], Hashable]) -> object:
    """The value, or something equal to nothing else if the file cannot be read."""
    try:
        return value()
    except OSError:
        return object()


def near_duplicates(thumbs: Pixels, distance: int = MAX_DISTANCE, correlation: float = MIN_CORRELATION) -> Links:
    """(P, 2) indices i < j of the images that are near-duplicates of each other.

    Args:
        thumbs: (N, 16, 18, 3) uint8.
        distance: largest number of differing bits of the hashes; -1 finds none.
        correlation: smallest Pearson correlation of the thumbnails' 864 values. An image of one color correlates
            with none.
    """
    pairs = close_pairs(difference_hashes(thumbs), distance)
    blocks = np.array_split(pairs, len(pairs) // _BLOCK + 1)
    return np.concatenate([block[_correlations(thumbs, block) >= correlation] for block in blocks])


def difference_hashes(thumbs: Pixels) -> NDArray[np.uint64]:
    """(N,) 64-bit hashes: of 9 × 8 gray cells, whether each is brighter than its left neighbor."""
    count, height, width, channels = thumbs.shape
    cells = thumbs.reshape(count, height // 2, 2, width // 2, 2, channels).sum((2, 4, 5), dtype=np.int32)
    bits = (cells[:, :, 1:] > cells[:, :, :-1]).reshape(count, 64)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> Links:
    """(P, 2) indices i < j of all hashes that differ in at most `distance` bits, sorted.

    Cut into `distance + 1` pieces, two such hashes have at least one piece in common (the pigeonhole principle, as
    in Manku et al. 2007), so that only the hashes which share a piece are compared: 200,000 in 7 to 30 s within
    6 bits.
    """
    bounds = np.linspace(0, 64, distance + 2).astype(int)
    found = [_close_in_piece(hashes, low, high, distance) for low, high in pairwise(bounds.tolist())]
    codes = np.unique(np.concatenate([np.empty(0, np.int64), *found]))
    return np.stack(np.divmod(codes, max(1, len(hashes))), axis=1)


def _close_in_piece(hashes: NDArray[np.uint64], low: int, high: int, distance: int) -> NDArray[np.int64]:
    """The close pairs (i, j) whose bits from `low` to `high` are equal, as i × N + j.

    Sorted by that piece, equal ones are neighbors: all are compared at once with their 1st, 2nd, 3rd, ... neighbor.
    """
    piece = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
    order = np.argsort(piece, kind="stable")
    piece, ordered = piece[order], hashes[order]
    end = np.searchsorted(piece, piece, side="right")
    left, step = np.arange(len(hashes)), 1
    found = [np.empty(0, np.int64)]
    while (left := left[left + step < end[left]]).size:
        close = left[np.bitwise_count(ordered[left] ^ ordered[left + step]) <= distance]
        found.append(order[close] * len(hashes) + order[close + step])  # the sort is stable: the first is lower
        step += 1
    return np.concatenate(found)


def _correlations(thumbs: Pixels, pairs: Links) -> NDArray[np.float32]:
    """(P,) Pearson correlations of the thumbnails of each pair."""
    first, second = (_standardized(thumbs[side]) for side in pairs.T)
    correlations: NDArray[np.float32] = (first * second).sum(axis=1)
    return correlations


def _standardized(thumbs: Pixels) -> NDArray[np.float32]:
    """(P, V) values with mean 0 and norm 1; all 0 where an image has one color."""
    values = thumbs.reshape(len(thumbs), math.prod(thumbs.shape[1:])).astype(np.float32)
    values -= values.mean(axis=1, keepdims=True)
    norm = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    np.divide(values, norm, out=values, where=norm > 1)  # under 1, no value differs by a gray level
    values[norm[:, 0] <= 1] = 0
    return values


def classes(keyed: Iterable[tuple[object, int]]) -> list[list[int]]:
    """The numbers that have one key, together, in the order in which the keys first come."""
    members: dict[object, list[int]] = {}
    for key, number in keyed:
        members.setdefault(key, []).append(number)
    return list(members.values())


def link_classes(members: Iterable[Sequence[int]]) -> Links:
    """(P, 2) indices that link each class's first member with each of its others."""
    pairs = [(group[0], other) for group in members for other in group[1:]]
    return np.array(pairs, np.int64).reshape(-1, 2)


def connected(count: int, *links: Links) -> NDArray[np.int64]:
    """(count,) the group of each image, named by its lowest index, where linked ones are in one group."""
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for i, j in np.concatenate([np.empty((0, 2), np.int64), *links]).tolist():
        low, high = sorted((root(i), root(j)))
        parent[high] = low
    return np.array([root(i) for i in range(count)], np.int64)
