"""The command `predict` in pieces of three images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mineral_batch.cli import main


@pytest.fixture
def command(model_path: Path) -> Any:
    """`mineral-batch predict` with the tiny model."""

    def run(*arguments: object) -> Result:
        options = ["predict", "-m", model_path, "--backend", "onnx-cpu", "--piece-images", 3]
        return CliRunner().invoke(main, [*map(str, [*options, *arguments])])

    return run
