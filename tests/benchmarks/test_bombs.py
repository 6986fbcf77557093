"""The bombs cost a run little, and its other images nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mineral_batch.errors import DataError
from mineral_bench.bombs import solid_webp, zeros_png
from mineral_bench.studies import bombs

pytest.importorskip("onnxruntime")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "mib", "answer"),
    [
        ("WebP 16383 x 15600", 4000, "1 predicted"),
        ("PNG 1 x 255,000,000", 300, "1 x 255000000 is over the limit of 500000 pixels a side"),
        ("JPEG 4000 x 3000 of 2,000 scans", 300, "more than the limit of"),
    ],
)
def test_a_bomb_costs_no_more_than_its_pixels(model_path: Path, bomb: str, mib: float, answer: str) -> None:
    for blast in bombs.measure(model_path, [("threads", 2), ("processes", 2)], [bomb]):
        assert answer in blast.answer
        assert blast.mib < mib
    assert blast.decoders == "2 processes"
    assert bomb in bombs.table([blast]).markdown()


def test_they_are_images_of_the_size_that_they_say() -> None:
    from mineral_batch.images.decode import open_rgb

    assert open_rgb(solid_webp(40, 30)).size == (40, 30)
    assert open_rgb(zeros_png(40, 30)).size == (40, 30)


def test_an_unknown_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bomb is called 'nuke'; there are WebP"):
        next(bombs.measure(tmp_path, [("threads", 1)], ["nuke"]))
