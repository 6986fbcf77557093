"""The outline of the land, for maps: Natural Earth at 1:110 million (public domain), made by docs/make_land.py."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray


@cache
def rings() -> tuple[NDArray[np.float64], ...]:
    """Return closed outlines, each (N, 2) longitude and latitude in degrees, off by up to about 70 km."""
    text = resources.files("mineral_batch.report").joinpath("assets", "land.json").read_text("utf-8")
    return tuple(np.array(ring, np.float64).reshape(-1, 2) / 10 for ring in json.loads(text)["rings"])
