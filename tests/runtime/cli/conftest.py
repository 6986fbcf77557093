"""The command `predict` on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mineral_batch.cli import main


@pytest.fixture
def predict(model_path: Path, tmp_path: Path) -> Any:
    """Run the command in this process, into tmp_path/out, with the tiny model on the CPU unless told otherwise."""

    def run(*arguments: object, model: Path | None = model_path, backend: str = "onnx-cpu") -> Result:
        options = ["-o", tmp_path / "out", "--backend", backend, *(["-m", model] if model else [])]
        return CliRunner().invoke(main, ["predict", *map(str, [*options, *arguments])])

    return run
