"""A run's folder, and a review of it served by the real command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from mineral_batch.results.csv import write_csv

from .serving import LABELS, NAMES, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


def write_results(parent: Path) -> Path:
    folder = parent / "results"
    folder.mkdir()
    photos = parent / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for index, name in enumerate(NAMES):
        Image.new("RGB", (60 + index, 40), (40 * index, 90, 120)).save(photos / name)
        scores = rng.random(3) * 0.9
        rows.append((f"photos/{name}", "quartz" if scores[2] > 0.5 else "", *(f"{value:.6f}" for value in scores)))
    write_csv(folder / "predictions.csv", ("path", "minerals", *LABELS), rows)
    return folder


@pytest.fixture
def server(results: Path) -> Iterator[Server]:
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    with serving(results, "--reviewer", "Ada") as running:
        yield running


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for tests that change nothing."""
    pytest.importorskip("uvicorn", reason="the extra review is not installed")
    with serving(write_results(tmp_path_factory.mktemp("shared"))) as running:
        yield running
