"""Predictions and labels of sixty pictures."""

from __future__ import annotations

import pytest

from .judging import World


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)
