"""The overlay: colors, and which part of the photograph they cover."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mineral_batch.explain.overlay import colors, overlay

from .models import GRID, SPEC, picture


def test_color_map_lightness_grows_evenly():
    """Of the ends and the lightness of inferno: what reads alike in gray and for the color-blind."""
    ramp = colors(np.linspace(0, 1, 101, dtype=np.float32)).astype(float)
    linear = np.where(ramp / 255 <= 0.04045, ramp / 255 / 12.92, ((ramp / 255 + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    assert ramp[0].tolist() == [0, 0, 4]
    assert ramp[-1].tolist() == [252, 255, 164]
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert np.abs(np.diff(lightness[::20]) - 20).max() < 4


def test_part_outside_the_crop_is_unchanged():
    spec = replace(SPEC, resize="crop")
    wide = picture((900, 300))
    laid = np.asarray(overlay(wide, np.ones(GRID, np.float32), spec))
    changed = (laid != np.asarray(wide)).any(axis=2)
    assert changed[:, 250:650].all(), "of 900 x 300 the model sees the central 400"
    assert not changed[:, :250].any()
    assert not changed[:, 650:].any()


def test_overlay_is_lightest_at_the_peak():
    heat = np.zeros(GRID, np.float32)
    heat[2, 13] = 1
    laid = np.asarray(overlay(picture((640, 480)), heat, SPEC).convert("L"))
    row, column = np.unravel_index(laid.argmax(), laid.shape)
    assert abs(row - 2.5 * 40) <= 20
    assert abs(column - 13.5 * 40) <= 20
