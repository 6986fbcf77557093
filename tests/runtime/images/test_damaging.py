"""Of many damaged images, none of the formats that can tell is predicted wrongly."""

from __future__ import annotations

import pytest

from ..conftest import can_write, encode
from .damaging import WRONG, main

# These have checksums, or their decoder tells where it stopped; those of the others decode any noise to some image.
SOUND = ("JPEG baseline", "JPEG with restarts", "PNG", "TIFF LZW", "TIFF deflate", "GIF", "WebP lossless", "WebP lossy")


@pytest.mark.parametrize(
    "count", [pytest.param(280, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.soak)]
)
def test_holes_noise_and_early_ends(count: int) -> None:
    results = main(count, 11, encode, can_write)
    assert {name: results[name] for name in SOUND if any(by[WRONG] for by in results[name].values())} == {}
    for name, by_damage in results.items():
        assert {damage for damage, counts in by_damage.items() if counts[WRONG]} <= {"noise"}, name
    total = sum(sum(counts) for by_damage in results.values() for counts in by_damage.values())
    assert total == count
