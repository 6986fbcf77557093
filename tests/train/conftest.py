"""Tiny models for the tests of training: a whole network in a few hundred thousand parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

from mineral_train.model.network import MineralNet, build_model
from mineral_train.model.presets import ModelConfig


def _tiny_config(backbone: str = "test_vit", **changes: object) -> ModelConfig:
    """A ViT (or any timm model) at 64 pixels: 16 tokens of 64 channels, a decoder of width 32, four labels."""
    small = {"image_size": 64, "width": 32, "ffn": 48, "labels": ("agate", "gold", "pyrite", "quartz")}
    return ModelConfig(backbone, **{**small, **changes})


@pytest.fixture
def tiny_config() -> Callable[..., ModelConfig]:
    """`tiny_config(backbone="test_vit", **changes)`; timm has more tiny models: `test_resnet`, `test_convnext`, ..."""
    return _tiny_config


@pytest.fixture
def tiny_model() -> Callable[..., MineralNet]:
    """`tiny_model(backbone="test_vit", **changes)`, in training mode, the same weights every time."""
    return lambda *args, **changes: build_model(_tiny_config(*args, **changes), seed=0)


@pytest.fixture
def images() -> torch.Tensor:
    """Three different normalized images, (3, 3, 64, 64) float32."""
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def colored_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 images to train on, 12 to validate on, 6 to test on, 48 x 40 pixels of noise over a flat color.

    `agate`, `gold` and `pyrite` are in a color channel each. No image has `quartz`, and a few have no label.
    """
    folder = tmp_path_factory.mktemp("colored")
    rng = np.random.default_rng(3)
    lines = ["path,labels,split"]
    for number in range(34):
        present = rng.random(3) < 0.5
        pixels = 180 * present + rng.integers(0, 70, (40, 48, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        names = ";".join(np.array(["agate", "gold", "pyrite"])[present])
        lines.append(f"{number}.png,{names},{'train' if number < 16 else 'val' if number < 28 else 'test'}")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def _photo(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """An image of smooth random colors, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photo() -> Callable[..., Image.Image]:
    """`photo(seed, size=(width, height))`: an image of smooth random colors, one for each seed."""
    return _photo


@pytest.fixture
def save_photo() -> Callable[..., Path]:
    """`save_photo(path, seed, size=...)` writes one, making the folders, and gives the path back."""

    def save(path: Path, seed: int, size: tuple[int, int] = (96, 72)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        _photo(seed, size).save(path, quality=90)
        return path

    return save
