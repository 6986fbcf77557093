"""What holds for all tests: one thread each, as they run beside each other, and nothing that depends on speed."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault(
    "MKL_NUM_THREADS", "1"
)  # read by torch when it is imported; OMP_NUM_THREADS would limit our own threads, too

settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """How a worker that died ended, which pytest-xdist does not say: a negative number is a signal's."""
    process: subprocess.Popen[bytes] | None = getattr(getattr(node.gateway, "_io", None), "popen", None)
    if not error or process is None:
        return
    try:
        ended = f"exit code {process.wait(10)}"
    except subprocess.TimeoutExpired:
        ended = "it still runs, and does not answer"
    node.config.get_terminal_writer().line(f"\nworker {node.gateway.id}, process {process.pid}: {ended}")
