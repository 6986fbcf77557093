"""`--freeze-stages` and `--freeze-norm`: what of a backbone does not learn, and whose statistics stand still."""

from __future__ import annotations

import pytest
import torch

from mineral_batch.errors import MineralError
from mineral_train.training.optim import freeze_stages, freeze_statistics, train_what_learns


@pytest.mark.parametrize(
    ("backbone", "still"),
    [
        ("test_efficientnet", ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")),
        ("test_vit", ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")),
        ("test_resnet", ("conv1.", "bn1.", "layer1.", "layer2.")),
    ],
)
def test_the_stem_and_the_lowest_stages_stand_still_and_the_rest_learns(tiny_model, images, backbone, still):
    model = tiny_model(backbone)
    start = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    freeze_stages(model.backbone, 2)
    train_what_learns(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model(images).square().sum().backward()
    optimizer.step()
    unmoved = {name for name, tensor in model.backbone.state_dict().items() if torch.equal(tensor, start[name])}
    expected = {name for name in start if name.startswith(still)}
    assert expected <= unmoved
    # Matrices move by their decay alone; a bias behind a scale that begins at 0 has no gradient yet.
    weights = {name for name, parameter in model.backbone.named_parameters() if parameter.ndim > 1}
    assert weights & unmoved == weights & expected


def test_what_learns_is_in_training_mode_and_the_rest_is_not(tiny_model):
    model = tiny_model("test_efficientnet")
    freeze_stages(model.backbone, 2)
    train_what_learns(model)
    assert not model.backbone.bn1.training
    assert not any(module.training for stage in model.backbone.blocks[:2] for module in stage.modules())
    assert all(module.training for module in model.backbone.blocks[2].modules())
    assert model.decoder.training


def test_none_frozen_by_default(tiny_model):
    model = tiny_model("test_efficientnet")
    freeze_stages(model.backbone, 0)
    train_what_learns(model)
    assert all(module.training for module in model.modules())


def test_a_stage_must_be_left_to_learn(tiny_model):
    backbone = tiny_model("test_resnet").backbone
    freeze_stages(backbone, 3)
    with pytest.raises(MineralError, match="--freeze-stages 4 freezes all 4 stages"):
        freeze_stages(backbone, 4)


def test_freeze_statistics_neither_move_nor_use_the_batch(tiny_model, images):
    backbone = tiny_model("test_efficientnet").backbone
    start = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
    backbone.train()
    freeze_statistics(backbone)
    together, alone = backbone(images), torch.cat([backbone(image) for image in images.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(tensor, start[name]) for name, tensor in backbone.named_buffers())
    together.square().sum().backward()
    assert backbone.bn1.weight.grad.abs().sum() > 0
