"""Grad-CAM in torch: the formula, spelled out a second way, and each image for itself."""

from __future__ import annotations

import pytest
import torch

from mineral_batch.errors import DataError
from mineral_train.maps import cross_attention, grad_cam

VARIANTS = {
    "vit, reshape": {"backbone": "test_vit", "projection": "reshape", "image_size": 128},
    "vit, linear": {"backbone": "test_vit", "projection": "linear"},
    "cnn, decoder, two blocks": {"backbone": "test_efficientnet", "blocks": 2},
    "cnn, pool": {"backbone": "test_efficientnet", "method": "pool"},
    "cnn, stages": {"backbone": "test_resnet", "method": "pool", "stages": 2},
    "cnn, fusion": {"backbone": "test_resnet", "method": "fusion"},
}


def spelled_out(model, image, label):
    """One image, one label, loops over channels: the paper's figure 6 from the definition."""
    features = model.features(image[None]).detach().requires_grad_()
    model.classify(features)[0, label].backward()
    total = torch.zeros(features.shape[1])
    for channel in range(features.shape[2]):
        total += features.grad[0, :, channel].mean() * features[0, :, channel].detach()
    positive = total.clamp(min=0)
    return (positive / positive.max() if positive.max() > 0 else positive).reshape(model.layout.grid)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_formula_for_each_image_and_its_own_labels(variant, tiny_model):
    options = VARIANTS[variant]
    model = tiny_model(**options).eval()
    size = options.get("image_size", 64)
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(5))
    labels = torch.tensor([[2, 0], [1, 3], [3, 2]])
    maps = grad_cam(model, images, labels)
    assert maps.shape == (3, 2, *model.layout.grid)
    for row in range(3):
        for place in range(2):
            expected = spelled_out(model, images[row], int(labels[row, place]))
            torch.testing.assert_close(maps[row, place], expected, atol=2e-4, rtol=0)


def test_other_labels_give_other_maps(tiny_model, images):
    """Guards the test above: were all labels' maps alike, the wrong target would pass."""
    model = tiny_model(projection="linear").eval()
    maps = grad_cam(model, images, torch.arange(4).expand(3, 4))
    assert (maps[:, 0] - maps[:, 1]).abs().amax() > 0.1


def test_evidence_in_a_corner_is_found_there(tiny_model):
    """A head that reads one channel, and features that carry it in one place only."""
    model = tiny_model("test_efficientnet", method="pool").eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.weight[1, 7] = 1.0
    rows, columns = model.layout.grid
    tokens = torch.zeros(1, rows * columns, model.layout.channels)
    tokens[0, -1, 7] = 3.0
    model.features = lambda _: tokens
    maps = grad_cam(model, torch.zeros(1, 3, 64, 64), torch.tensor([[1, 0]]))
    assert maps[0, 0].argmax() == rows * columns - 1
    assert maps[0, 0].sum() == 1
    assert not maps[0, 1].any(), "no evidence is a map of zeros, not of NaN"


def test_the_model_is_left_as_it_was(tiny_model, images):
    model = tiny_model().eval()
    grad_cam(model, images, torch.zeros(3, 1, dtype=torch.int64))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cross_attention_is_the_last_blocks_mean_over_heads(tiny_model, images):
    model = tiny_model(projection="linear", blocks=2).eval()
    maps = cross_attention(model, images, torch.tensor([[2], [0], [1]]))
    with torch.no_grad():
        weights = model.cross_attention(model.features(images))  # (N, H, L, T)
    expected = weights[1, :, 0].mean(dim=0)
    torch.testing.assert_close(maps[1, 0].flatten(), expected / expected.max())


def test_a_memory_without_places_has_no_attention_map(tiny_model):
    model = tiny_model(projection="reshape", image_size=128).eval()
    with pytest.raises(DataError, match="use Grad-CAM"):
        cross_attention(model, torch.zeros(1, 3, 128, 128), torch.tensor([[0]]))


def test_tokens_without_places_have_no_map(tiny_model, images):
    from dataclasses import replace

    model = tiny_model().eval()
    model.layout = replace(model.layout, grid=None)
    with pytest.raises(DataError, match="form no grid of places"):
        grad_cam(model, images, torch.zeros(3, 1, dtype=torch.int64))
