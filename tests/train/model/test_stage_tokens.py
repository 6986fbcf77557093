"""`--stages`: tokens of several resolutions side by side."""

from __future__ import annotations

import pytest
import torch

from mineral_batch.errors import DataError
from mineral_train.model.fusion import StageTokens
from mineral_train.model.presets import ModelConfig


def test_mean_of_the_tokens_is_the_pooled_stages_side_by_side():
    torch.manual_seed(0)
    stages = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4), torch.randn(2, 4, 2, 2)]
    tokens = StageTokens([3, 5, 4]).eval()(stages)
    assert tokens.shape == (2, 16, 12)
    pooled = torch.cat([stage.mean((2, 3)) for stage in stages], dim=1)
    torch.testing.assert_close(tokens.mean(dim=1), pooled, rtol=1e-4, atol=1e-5)


def test_a_token_is_a_place():
    """What lights up one corner of every stage lights up that corner's tokens alone."""
    stages = [torch.zeros(1, 2, side, side) for side in (8, 4, 4)]
    for stage in stages:
        stage[:, :, : stage.shape[2] // 2, : stage.shape[3] // 2] = 1
    lit = StageTokens([2, 2, 2]).eval()(stages)[0].mean(dim=1).reshape(4, 4)
    assert (lit[:2, :2] > 0.9).all()
    assert lit.sum() == lit[:2, :2].sum()


def test_stages_of_any_magnitude_come_out_alike():
    torch.manual_seed(0)
    stages = [1000 * torch.randn(8, 3, 4, 4) + 500, 0.1 * torch.randn(8, 3, 4, 4)]
    spread = StageTokens([3, 3]).train()(stages).flatten(0, 1).std(dim=0)
    assert spread.min() > 0.9
    assert spread.max() < 1.1


@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_vit"])
@pytest.mark.parametrize("method", ["decoder", "pool"])
def test_every_stage_is_used_and_every_parameter_that_learns_gets_a_gradient(tiny_model, images, backbone, method):
    model = tiny_model(backbone, method=method, stages=3, projection="linear")
    tokens = model.features(images)
    assert tokens.shape == (3, model.layout.tokens, model.layout.channels)
    logits = model.classify(tokens)
    assert logits.shape == (3, 4)
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_the_number_of_stages_is_kept_with_the_model_and_checked():
    config = ModelConfig(stages=3)
    assert ModelConfig.from_json(config.to_json()) == config
    with pytest.raises(DataError, match="stages"):
        ModelConfig(stages=0)
