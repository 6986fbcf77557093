"""Of many images with a hole or noise in the middle, none of the formats that can tell is predicted wrongly."""

from __future__ import annotations

import pytest

from ..conftest import can_write, encode
from .damaging import WRONG, main

# These have checksums, or their decoder notices; arithmetic coding decodes any noise to some image.
SOUND = ("JPEG baseline", "JPEG with restarts", "PNG", "TIFF LZW", "TIFF deflate", "GIF")


@pytest.mark.parametrize(
    "count", [pytest.param(280, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.soak)]
)
def test_holes_and_noise(count: int) -> None:
    results = main(count, 11, encode, can_write)
    assert {name: results[name] for name in SOUND if any(by[WRONG] for by in results[name].values())} == {}
    for name, by_damage in results.items():
        assert name == "WebP lossless" or by_damage.get("hole", [0, 0, 0])[WRONG] == 0, name
    total = sum(sum(counts) for by_damage in results.values() for counts in by_damage.values())
    assert total == count
