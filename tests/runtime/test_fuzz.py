"""Mutated pictures: no crash, no hang, no lost row, a reason for each, and neighbors unchanged to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mineral_batch.images.processes.pool import is_supported

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("mutants", "processes", "seconds"),
    [
        (300, 0, 600),
        pytest.param(300, 2, 900, marks=pytest.mark.slow),
        pytest.param(5000, 0, 3600, marks=pytest.mark.soak),
    ],
    ids=["300", "300 in processes", "5000"],
)
def test_mutants_fail_with_a_reason_and_trouble_nobody(
    model_path: Path, mutants: int, processes: int, seconds: float
) -> None:
    if processes and not is_supported():
        pytest.skip("decode processes need POSIX")
    arguments = [str(mutants), "11", str(model_path), str(processes)]
    program = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["predicted"] + summary["failed"] == mutants
    assert summary["failed"] > mutants // 3  # the mutations do bite
    assert summary["predicted"] > mutants // 50  # and do not only make garbage
    assert len(summary["reasons"]) > 5
