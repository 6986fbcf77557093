"""Imports between packages and rooms go one way, as the contracts in pyproject.toml state."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("mineral_batch", "mineral_train", "mineral_export", "mineral_bench")
FOLDERS = {"mineral_batch": "runtime", "mineral_train": "train", "mineral_export": "export"} | {
    "mineral_bench": "benchmarks"
}


def test_imports_go_one_way() -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra `dev`")
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


@pytest.mark.parametrize("lower", range(len(LAYERS)))
def test_no_file_names_a_package_above_its_own(lower: int) -> None:
    """Also where import-linter does not look: in a string that is imported later."""
    above = LAYERS[lower + 1 :]
    folder = ROOT / FOLDERS[LAYERS[lower]] / LAYERS[lower]
    files = sorted(folder.rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        for package in above
        if f"{package}." in line or f"import {package}" in line or f"from {package}" in line
    ]
    assert not wrong
