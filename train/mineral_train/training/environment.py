"""What holds for the process while it trains: reproducible arithmetic, and memory errors in words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from mineral_train.training.config import DoesNotFitError


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within, equal computations give equal bits, if `wanted`.

    On a GPU by torch's deterministic kernels. On a CPU by one thread: torch and oneDNN may divide a sum among threads
    by how many are free, which torch's own switch does not govern.
    """
    if not wanted:
        yield
        return
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    # cuBLAS reads this when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


@contextlib.contextmanager
def memory_in_words() -> Iterator[None]:
    """Within, a GPU that is too small is one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DoesNotFitError(
            "the GPU's memory is too small: --accumulate 2 (or 4, 8) gives the same gradients in less of it, "
            "--precision bf16 halves much of it"
        ) from None
