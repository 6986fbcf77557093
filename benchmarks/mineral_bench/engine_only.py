"""An engine without the pipeline: decoded batches in its own memory, on all threads that it takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mineral_batch.engines.base import Backend
    from mineral_batch.types import Pixels, Probabilities

#: Batches for each thread in a round: the first is waited for, and must not count for much.
LEAST_BATCHES = 16
#: Different images in a round; longer rounds repeat them.
DECODED = 256


def fill(backend: Backend, pixels: Pixels, batch: int) -> list[Pixels]:
    """Copy (N, H, W, 3) uint8 images, a batch at a time, to the memory that the backend reads fastest."""
    buffers = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        buffer = backend.buffer(len(part))
        buffer[:] = part
        buffers.append(buffer)
    return buffers


def infer_all(backend: Backend, batches: Iterable[Pixels]) -> Probabilities:
    """Return (N, L) for all images of the batches, on as many threads as the pipeline gives the backend."""
    with ThreadPoolExecutor(backend.workers) as pool:
        # Copied, because the next call may overwrite it.
        return np.concatenate(list(pool.map(lambda batch: backend.infer(batch).copy(), batches)))
