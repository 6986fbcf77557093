"""A model that knows three colors, and an album of colored squares."""

from __future__ import annotations

import pytest

from .models import picture, write_color_model


@pytest.fixture(scope="module")
def color_model_path(tmp_path_factory):
    return write_color_model(tmp_path_factory.mktemp("colors") / "model.onnx")


@pytest.fixture
def album(tmp_path):
    folder = tmp_path / "album"
    (folder / "deep").mkdir(parents=True)
    picture((640, 480), ("azurite", 40, 40, 150), ("cinnabar", 450, 300, 150)).save(folder / "both.png")
    picture((300, 400), ("malachite/green", 100, 30, 90)).save(folder / "deep" / "green.png")
    picture((200, 200)).save(folder / "gray.png")
    return folder
