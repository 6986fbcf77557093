"""What every runner needs: input of noise, and a stream of its own."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator


def noise(shape: tuple[int, ...]) -> Any:
    """Return uint8 noise: on zeros a chip draws less power, and so runs faster."""
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@contextmanager
def side_stream() -> Iterator[Any]:
    """Run this process's measurements on a stream of its own: CUDA graphs cannot be captured on the default one."""
    import torch

    stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield stream
    stream.synchronize()
