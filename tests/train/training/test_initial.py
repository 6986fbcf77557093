"""Beginning with an exported model: the starter, or an ONNX file of one's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS
from mineral_batch.model.contract import InputSpec
from mineral_batch.model.onnx_file import read_contract
from mineral_batch.model.starter import starter_path
from mineral_train.model.network import build_model, input_spec
from mineral_train.model.normalize import Normalize
from mineral_train.model.onnx_weights import load_onnx
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit
from mineral_train.training.initial import require_start
from mineral_train.training.recipes import FEW, STARTER_MODEL, default_recipe, load_recipe

HERE = RunOptions(device="cpu", workers=0, quiet=True)


def _starter_probabilities(pixels):
    session = onnxruntime.InferenceSession(starter_path())
    return session.run(["probabilities"], {"pixels": pixels})[0]


def test_the_starter_is_rebuilt_to_the_same_answers():
    """Fails if the shipped starter has another architecture than `recipes.STARTER_MODEL`."""
    model = build_model(STARTER_MODEL, seed=1).eval()
    assert load_onnx(model, starter_path(), read_contract(starter_path()).labels) == 36
    spec = input_spec(STARTER_MODEL)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *spec.shape), np.uint8)
    with torch.no_grad():
        normal = Normalize(spec)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        ours = model(normal).sigmoid().numpy()
    np.testing.assert_allclose(ours, _starter_probabilities(pixels), atol=2e-4)
    assert read_contract(starter_path()).input == spec == InputSpec(**spec.__dict__)


def test_other_labels_keep_the_backbone_and_the_known_rows():
    model = build_model(replace(STARTER_MODEL, labels=("my mineral", "gold")), seed=1)
    random_row = model.head.weight[0].detach().clone()
    assert load_onnx(model, starter_path(), MINERALS) == 1
    whole = build_model(STARTER_MODEL, seed=2)
    load_onnx(whole, starter_path(), MINERALS)
    assert torch.equal(model.head.weight[1], whole.head.weight[MINERALS.index("gold")])
    assert torch.equal(model.head.weight[0], random_row)


def test_another_architecture_is_refused_in_one_line(tiny_model):
    with pytest.raises(DataError, match="has no linear head that fits") as caught:
        load_onnx(tiny_model("test_efficientnet", method="pool"), starter_path(), MINERALS)
    assert "\n" not in str(caught.value)
    model = build_model(STARTER_MODEL, seed=0)
    stem = model.backbone.conv_stem
    model.backbone.conv_stem = torch.nn.Conv2d(3, stem.out_channels, 5, stride=2, padding=2, bias=False)
    with pytest.raises(DataError, match="cannot rebuild"):
        load_onnx(model, starter_path(), MINERALS)


def test_a_run_begins_with_the_starter(colored_manifest, tmp_path):
    model = replace(STARTER_MODEL, image_size=64, labels=("agate", "gold", "pyrite", "quartz"))
    config = TrainConfig(model, **{**FEW, "train_size": 0, "epochs": 1, "lr": 1e-12})
    lines = []
    fit(config, colored_manifest, tmp_path, HERE, say=lines.append)
    assert any("all weights from starter" in line for line in lines)


def test_the_starter_needs_its_statistics_frozen():
    config = TrainConfig(STARTER_MODEL, **{**FEW, "freeze_norm": False})
    with pytest.raises(DataError, match="add --freeze-norm"):
        require_start(config)


@pytest.mark.parametrize(("images", "name"), [(30, "few"), (19_999, "few"), (20_000, "paper"), (165_000, "paper")])
def test_the_default_recipe_follows_the_number_of_images(images, name):
    recipe, why = default_recipe(images)
    assert recipe == name
    assert f"{images:,}" in why


def test_recipes_are_names_or_toml_files(tmp_path):
    assert load_recipe("paper") == {}
    assert load_recipe("few") == FEW
    (tmp_path / "r.toml").write_text("epochs = 3\nhead-lr = 2.5\n", "utf-8")
    assert load_recipe(str(tmp_path / "r.toml")) == {"epochs": 3, "head_lr": 2.5}
    with pytest.raises(DataError, match="choose few, paper, or give a TOML file"):
        load_recipe("many")
    (tmp_path / "r.toml").write_text("epochs = \n", "utf-8")
    with pytest.raises(DataError, match="cannot read the recipe"):
        load_recipe(str(tmp_path / "r.toml"))
