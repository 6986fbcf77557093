"""Scores of maps: the pointing game, deletion, insertion, and masks."""

from __future__ import annotations

import numpy as np
import pytest

from mineral_batch.errors import DataError
from mineral_batch.explain.explainer import explain, open_explainer
from mineral_batch.explain.scores import center_map, deletion, insertion, pointing_game, read_masks
from mineral_batch.images.discover import find_sources

from .models import GRID, SPEC, picture, save_mask, square_mask


def test_pointing_game_hit_miss_and_chance():
    size = (640, 480)
    heat = np.zeros(GRID, np.float32)
    heat[0, 0] = 1
    corner, middle = square_mask(size, 0, 0, 160), square_mask(size, 280, 200, 80)
    assert pointing_game(heat, corner, SPEC) == (True, False, pytest.approx(160 * 160 / (640 * 480)))
    assert pointing_game(heat, middle, SPEC) == (False, True, pytest.approx(80 * 80 / (640 * 480)))
    assert not pointing_game(np.zeros(GRID, np.float32), np.ones((480, 640), bool), SPEC).hit, (
        "a map of zeros never hits"
    )


def test_deletion_and_insertion_prefer_the_right_map(color_model_path, tmp_path):
    picture((640, 480), ("azurite", 20, 20, 150)).save(tmp_path / "a.png")
    (source,) = find_sources([tmp_path / "a.png"])
    with open_explainer(color_model_path) as explainer:
        found = explain(explainer, source)

        def answer(pixels):
            return explainer.infer(pixels).probabilities

        arguments = answer, found.pixels
        right, baseline = found.maps[0].heat, center_map(GRID)
        gone, baseline_gone = (deletion(*arguments, heat, 2, SPEC) for heat in (right, baseline))
        back, baseline_back = (insertion(*arguments, heat, 2, SPEC) for heat in (right, baseline))
    assert gone < 0.2 < 0.7 < baseline_gone
    assert back > 0.8
    assert back > baseline_back


def test_baseline_map_is_strongest_in_the_center():
    heat = center_map((3, 5))
    assert heat.argmax() == 7
    assert heat[0, 0] == heat[2, 4] == heat.min() > 0


def test_mask_is_read_by_its_mineral_names(tmp_path):
    save_mask(tmp_path / "m.png", (40, 30), ("azurite", 5, 6, 7))
    masks = read_masks(tmp_path / "m.png")
    assert list(masks) == ["azurite"]
    np.testing.assert_array_equal(masks["azurite"], square_mask((40, 30), 5, 6, 7))
    picture((40, 30)).save(tmp_path / "photo.png")
    with pytest.raises(DataError, match="not a mask of mineral-train synth"):
        read_masks(tmp_path / "photo.png")
