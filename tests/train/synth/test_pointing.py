"""Grad-CAM finds minerals where they are, in images whose middle says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from mineral_batch.explain.scores import pointing_game
from mineral_batch.minerals import MINERALS
from mineral_train.maps import grad_cam
from mineral_train.model.network import input_spec
from mineral_train.model.presets import ModelConfig
from mineral_train.synth import SynthConfig, generate, write_dataset
from mineral_train.training.checkpoint import load_checkpoint
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit

if TYPE_CHECKING:
    from pathlib import Path

# Blue, red, green, yellow: what a network of a few hundred thousand parameters learns from 96 images.
COLORED = ("azurite", "cinnabar", "malachite", "sulfur")
SIZE = 96


@pytest.mark.slow
def test_maps_point_at_the_minerals_far_more_often_than_the_middle_lies_on_them(tmp_path: Path) -> None:
    synth = SynthConfig(size=SIZE, max_minerals=2, minerals=COLORED, split=(3, 1, 0), off_center=True)
    manifest = write_dataset(tmp_path / "images", 128, synth)
    net = ModelConfig("test_resnet", image_size=SIZE, method="pool", stages=3, labels=COLORED)
    config = TrainConfig(net, pretrained="none", loss="bce", augment="", epochs=8, lr=3e-3)
    fit(config, manifest, tmp_path / "run", RunOptions(device="cpu", workers=0, quiet=True))
    model, _ = load_checkpoint(tmp_path / "run")
    held_out = [generate(i, 1, SIZE, max_minerals=2, minerals=COLORED, off_center=True) for i in range(60)]

    spec = input_spec(net)
    pixels = np.stack([image.pixels for image in held_out]) / np.float32(255)
    normal = (pixels - np.float32(spec.mean)) / np.float32(spec.std)
    maps = grad_cam(model.eval(), torch.from_numpy(normal).permute(0, 3, 1, 2), torch.arange(4).expand(60, -1))
    turns = [
        pointing_game(heat[COLORED.index(mineral)].numpy(), image.mask == MINERALS.index(mineral) + 1, spec)
        for image, heat in zip(held_out, maps, strict=True)
        for mineral in image.labels
    ]
    hit, center, anywhere = np.mean(turns, axis=0)
    assert anywhere < 0.15
    assert center < 0.3
    assert hit > 0.6  # measured: 0.94, where the middle has 0.20
