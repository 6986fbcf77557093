"""Mutated pictures: no crash, no hang, no lost row, a reason for each, and neighbors unchanged to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")


@pytest.mark.parametrize(
    ("mutants", "seconds"), [(300, 120), pytest.param(5000, 1800, marks=pytest.mark.soak)], ids=["300", "5000"]
)
def test_mutants_fail_with_a_reason_and_trouble_nobody(model_path: Path, mutants: int, seconds: float) -> None:
    program = [sys.executable, str(Path(__file__).with_name("fuzzing.py")), str(mutants), "11", str(model_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["predicted"] + summary["failed"] == mutants
    assert summary["failed"] > mutants // 3  # the mutations do bite
    assert summary["predicted"] > mutants // 50  # and do not only make garbage
    assert len(summary["reasons"]) > 5
