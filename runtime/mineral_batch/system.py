"""What this machine gives the process."""

from __future__ import annotations

import os


def cpu_count() -> int:
    """How many this process may use: as many threads decode, since Pillow releases the interpreter's lock."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
