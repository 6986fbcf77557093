"""Geometry of maps: the right place in the photograph, whatever its size, orientation and crop."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mineral_batch.errors import ContractError
from mineral_batch.explain.explainer import explain, open_explainer
from mineral_batch.explain.maps import MapSpec, enlarge, peak
from mineral_batch.explain.scores import pointing_game
from mineral_batch.images.discover import find_sources

from .models import SPEC, picture, square_mask, write_color_model


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", [(640, 480), (900, 300), (300, 900), (128, 96)])
def test_peak_is_on_the_mineral(size, resize, tmp_path):
    spec = replace(SPEC, resize=resize)
    model = write_color_model(tmp_path / "model.onnx", spec)
    side = min(size) // 4
    left, top = size[0] // 2 + side // 3, size[1] // 2 - side  # right of and above the middle, inside any cut
    picture(size, ("azurite", left, top, side)).save(tmp_path / "a.png")
    found = explain_file(model, tmp_path / "a.png")
    assert found.maps[0].label == "azurite"
    at = peak(found.maps[0].heat, size, spec)
    assert left <= at[0] < left + side
    assert top <= at[1] < top + side
    assert pointing_game(found.maps[0].heat, square_mask(size, left, top, side), spec).hit


@settings(deadline=None)
@given(heat=hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(0, 1, width=32)))
def test_enlarging_keeps_the_range_and_the_patch_centers(heat):
    rows_, columns = heat.shape
    large = enlarge(heat, (columns * 5, rows_ * 5))
    assert large.shape == (rows_ * 5, columns * 5)
    assert large.min() >= heat.min() - 1e-6
    assert large.max() <= heat.max() + 1e-6
    np.testing.assert_allclose(large[2::5, 2::5], heat, atol=1e-5)


@pytest.mark.parametrize("record", [{"method": "guess"}, {"grid": [3]}, {"grid": [0, 3]}, {"top": "2"}])
def test_invalid_map_metadata_is_refused(record):
    good = {"method": "grad-cam", "grid": [3, 4], "top": 2}
    assert MapSpec.from_json(json.dumps(good)) == MapSpec("grad-cam", (3, 4), 2)
    with pytest.raises(ContractError):
        MapSpec.from_json(json.dumps(good | record))


def explain_file(model, path):
    with open_explainer(model) as explainer:
        (source,) = find_sources([path])
        return explain(explainer, source)
