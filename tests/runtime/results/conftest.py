"""A predictor on the tiny model, opened once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mineral_batch import Predictor


@pytest.fixture(scope="session")
def predictor(model_path: Path) -> Iterator[Predictor]:
    with Predictor(model_path, backend="onnx-cpu", batch_size=2, decode_threads=2) as opened:
        yield opened
