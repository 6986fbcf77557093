from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mineral_batch.errors import DataError
from mineral_batch.minerals import MINERALS
from mineral_train.model.backbones import import_timm
from mineral_train.model.network import (
    PAPER_PARAMETERS,
    PRESETS,
    ModelConfig,
    build_model,
    input_spec,
    parameters_by_part,
    parameters_like_the_paper,
    preset,
)
from mineral_train.training.losses import make_loss

# tokens T, channels C of every row of the paper's tables at 384 pixels
ROWS = {
    "vit-b16-384": (576, 768),
    "mobilenet-v2": (144, 1280),
    "bit-m-r101x1": (144, 2048),
    "resnet-101": (144, 2048),
    "swin-b-384": (144, 1024),
    "resnet50-fusion": (576, 256),
}


@functools.cache
def on_meta(name):
    """A full-size network that has shapes and no numbers."""
    with torch.device("meta"):
        return build_model(preset(name))


@pytest.mark.parametrize("name", ROWS)
def test_full_size_shapes(name):
    model, image = on_meta(name).eval(), torch.empty(2, 3, 384, 384, device="meta")
    tokens = model.features(image)
    assert tokens.shape == (2, *ROWS[name])
    assert model.classify(tokens).shape == (2, 36)
    assert all(p.requires_grad for p in model.parameters())


def test_the_papers_model_has_the_papers_shapes():
    model = on_meta("vit-b16-384")
    memory = model.projection(torch.empty(1, 576, 768, device="meta"))
    assert memory.shape == (1, 256, 2048)
    assert model.projection.convolution.weight.shape == (2048, 1728, 1)
    assert model.decoder.labels.shape == (36, 2048)
    assert model.decoder(memory).shape == (1, 36, 2048)
    assert model.head.linear.weight.shape == (36, 36 * 2048)


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_parameters_agree_with_table_3(name):
    assert parameters_like_the_paper(preset(name)) / 1e6 == pytest.approx(PAPER_PARAMETERS[name], abs=0.007)


def test_parameters_by_part_of_the_papers_model():
    """Counted by hand from the layers' sizes."""
    attention, norm = 4 * (2048 * 2048 + 2048), 2 * 2048
    ffn = 2048 * 8192 + 8192 + 8192 * 2048 + 2048
    assert parameters_by_part(on_meta("vit-b16-384")) == {
        "backbone": 86_090_496,  # timm's own count of ViT-B/16 at 384 without classifier
        "projection": 1728 * 2048 + 2048,
        "decoder": 36 * 2048 + 2 * attention + ffn + 3 * norm,
        "head": 36 * 2048 * 36 + 36,
    }


BIG = {"vit-b16-384", "swin-b-384", "bit-m-r101x1"}  # seconds to draw the random weights alone


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in PRESETS]
)
def test_one_step_gives_every_parameter_a_finite_gradient(name):
    """The real backbone on small images, with a narrow decoder."""
    small = preset(name, image_size=64, width=32, ffn=32)
    model = build_model(small, seed=0)
    loss = make_loss("asymmetric")(model(torch.randn(2, 3, 64, 64)), torch.ones(2, 36))
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("name", PRESETS)
def test_input_spec_is_what_the_backbone_was_pretrained_with(name):
    config = preset(name)
    timms = import_timm().get_pretrained_cfg(config.backbone)
    spec = input_spec(config)
    assert (spec.mean, spec.std, spec.interpolation) == (timms.mean, timms.std, timms.interpolation)
    assert (spec.height, spec.width, spec.resize) == (config.image_size, config.image_size, "squash")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_weights_that_timm_has(name):
    config = preset(name)
    assert "." in config.backbone, "without its tag the weights would change with timm's default"
    assert import_timm().get_pretrained_cfg(config.backbone).has_weights
    assert config.labels == MINERALS


def test_config_survives_json():
    config = preset("resnet50-fusion", labels=("gold", "fool's gold", "金"), drop_path=0.1)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_unknown_fields_are_named():
    with pytest.raises(DataError, match=r"unknown fields \['depth'\]; known are \['backbone', "):
        ModelConfig.from_json({"depth": 3})


@pytest.mark.parametrize("record", [{"labels": None}, {"dropout": "0.1"}])
def test_a_value_of_the_wrong_type_is_a_data_error(record):
    with pytest.raises(DataError, match="model config has a value of the wrong type"):
        ModelConfig.from_json(record)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pooling"}, "model.method must be one of decoder, pool, fusion, got 'pooling'"),
        ({"projection": "conv"}, "one of reshape, linear"),
        ({"head": None}, "one of flatten, group"),
        ({"blocks": 0}, "model.blocks must be a whole number from 1, got 0"),
        ({"width": 256.0}, "whole number"),
        ({"width": 30}, "model.width must be a multiple of model.heads, got 30 and 4"),
        ({"dropout": 1.0}, "model.dropout must be from 0 to below 1"),
        ({"drop_path": -0.1}, "model.drop_path"),
        ({"labels": ()}, "needs at least one label"),
    ],
)
def test_values_out_of_range_say_the_range(changes, message):
    with pytest.raises(DataError, match=message):
        replace(ModelConfig(), **changes)


def test_unknown_preset_lists_the_presets():
    with pytest.raises(DataError, match="no preset 'vit-b16'; there are: vit-b16-384, mobilenet-v2, "):
        preset("vit-b16")


def test_presets_can_be_listed_without_torch():
    code = "import sys; sys.modules['torch'] = None; import mineral_train.model.presets"
    subprocess.run([sys.executable, "-c", code], check=True)
