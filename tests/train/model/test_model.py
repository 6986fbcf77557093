from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from mineral_batch.errors import DataError
from mineral_train.model.backbones import import_timm
from mineral_train.model.decoder import LabelDecoder, ReshapeProjection
from mineral_train.model.network import build_model, parameters_by_part
from mineral_train.training.losses import make_loss

VARIANTS = {
    "the paper's model": ("test_vit", {}),
    "linear projection": ("test_vit", {"projection": "linear"}),
    "one weight vector per label": ("test_vit", {"head": "group"}),
    "three blocks": ("test_vit", {"blocks": 3}),
    "CNN": ("test_efficientnet", {}),
    "CNN with a norm in its classifier": ("test_convnext", {}),
    "feature map with channels last": ("test_mambaout", {}),
    "hybrid": ("test_maxvit", {"image_size": 96}),
    "pooled ViT": ("test_vit", {"method": "pool"}),
    "pooled CNN": ("test_resnet", {"method": "pool"}),
    "fused CNN": ("test_resnet", {"method": "fusion"}),
}
each_variant = pytest.mark.parametrize(("backbone", "changes"), VARIANTS.values(), ids=VARIANTS.keys())


def images_for(model, count=3):
    size = model.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@each_variant
def test_one_step_moves_every_parameter_and_lowers_the_loss(tiny_model, backbone, changes):
    model = tiny_model(backbone, dropout=0.0, **changes)
    images, targets = images_for(model), torch.eye(3, 4)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    loss = make_loss("asymmetric")(model(images), targets)
    loss.backward()
    for name, parameter in trained:
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    torch.optim.SGD([p for _, p in trained], lr=1e-4).step()
    assert make_loss("asymmetric")(model(images), targets) < loss


@each_variant
def test_an_image_does_not_see_its_batch(tiny_model, backbone, changes):
    model = tiny_model(backbone, **changes).eval()
    images = images_for(model)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    assert together.shape == (3, 4)
    assert together.std(dim=0).min() > 0
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@each_variant
def test_tokens_stand_between_the_halves(tiny_model, backbone, changes):
    model = tiny_model(backbone, **changes).eval()
    images = images_for(model)
    with torch.no_grad():
        tokens = model.features(images)
        assert tokens.shape == (3, model.layout.tokens, model.layout.channels)
        assert model.layout.grid is not None
        assert np.prod(model.layout.grid) == model.layout.tokens
        torch.testing.assert_close(model.classify(tokens), model(images))


@each_variant
def test_parameters_by_part_add_up(tiny_model, backbone, changes):
    model = tiny_model(backbone, **changes)
    assert sum(parameters_by_part(model).values()) == sum(p.numel() for p in model.parameters())


def test_vit_tokens_are_timms_after_the_last_norm_without_the_class_token(tiny_model, images):
    model = tiny_model().eval()
    with torch.no_grad():
        last = model.backbone.forward_intermediates(
            images, indices=1, norm=True, output_fmt="NCHW", intermediates_only=True
        )[0]
        tokens = model.features(images)
    torch.testing.assert_close(tokens, last.flatten(2).transpose(1, 2))
    assert model.layout.grid == (4, 4)


@pytest.mark.parametrize(("backbone", "order"), [("test_efficientnet", "nchw"), ("test_mambaout", "nhwc")])
def test_map_tokens_are_places_row_by_row(tiny_model, backbone, order):
    model = tiny_model(backbone, image_size=96).eval()
    images = images_for(model)
    with torch.no_grad():
        tokens, features = model.features(images), model.backbone.forward_features(images)
    rows, columns = model.layout.grid
    assert rows * columns > 1
    for row in range(rows):
        for column in range(columns):
            place = features[:, :, row, column] if order == "nchw" else features[:, row, column]
            assert torch.equal(tokens[:, row * columns + column], place)


def test_reshape_projection_is_the_papers():
    """576 x 768 -> row-major 1728 x 256 -> 1x1 convolution -> 2048 x 256 -> transposed, in numpy."""
    projection = ReshapeProjection(576, 768, 2048)
    tokens = torch.randn(2, 576, 768)
    weight = projection.convolution.weight.detach().numpy()[:, :, 0]
    bias = projection.convolution.bias.detach().numpy()
    assert weight.shape == (2048, 1728)
    for image, memory in zip(tokens.numpy(), projection(tokens).detach().numpy(), strict=True):
        table = image.reshape(-1).reshape(1728, 256)
        expected = (weight @ table + bias[:, None]).T
        assert memory.shape == (256, 2048)
        np.testing.assert_allclose(memory, expected, atol=1e-4)


def test_reshape_needs_a_table_that_comes_out_even(tiny_config):
    with pytest.raises(DataError, match=r"multiple of 256, got 25 x 64: use --projection linear"):
        build_model(tiny_config(image_size=80, projection="reshape"))


def reference_layers(decoder: LabelDecoder, width: int, heads: int, ffn: int) -> list[nn.Module]:
    """torch's own decoder layers with our decoder's weights."""
    layers = []
    for block in decoder.blocks:
        layer = nn.TransformerDecoderLayer(width, heads, ffn, dropout=0.0, batch_first=True).eval()
        pairs = {"self_attn": block.self_attention, "multihead_attn": block.cross_attention}
        for name, ours in pairs.items():
            theirs = getattr(layer, name)
            theirs.in_proj_weight.data = torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]).data
            theirs.in_proj_bias.data = torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]).data
            theirs.out_proj.load_state_dict(ours.out.state_dict())
        layer.linear1.load_state_dict(block.ffn[0].state_dict())
        layer.linear2.load_state_dict(block.ffn[3].state_dict())
        for norm, ours in [("norm1", block.norm_self), ("norm2", block.norm_cross), ("norm3", block.norm_ffn)]:
            getattr(layer, norm).load_state_dict(ours.state_dict())
        layers.append(layer)
    return layers


@pytest.fixture
def decoder() -> LabelDecoder:
    """Two blocks for five labels, every weight and bias random."""
    generator = torch.Generator().manual_seed(2)
    decoder = LabelDecoder(labels=5, width=24, blocks=2, heads=3, ffn=40, dropout=0.3).eval()
    for parameter in decoder.parameters():
        parameter.data.normal_(std=0.5, generator=generator)
    return decoder


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.randn(4, 7, 24, generator=torch.Generator().manual_seed(3))


def test_decoder_equals_torchs(decoder, memory):
    expected = decoder.labels.expand(4, -1, -1)
    for layer in reference_layers(decoder, 24, 3, 40):
        expected = layer(expected, memory)
    torch.testing.assert_close(decoder(memory), expected)


def test_cross_attention_weights_equal_torchs(decoder, memory):
    first, last = reference_layers(decoder, 24, 3, 40)
    state = first(decoder.labels.expand(4, -1, -1), memory)
    state = last.norm1(state + last.self_attn(state, state, state, need_weights=False)[0])
    _, expected = last.multihead_attn(state, memory, memory, average_attn_weights=False)
    weights = decoder.attention(memory)
    assert weights.shape == (4, 3, 5, 7)
    torch.testing.assert_close(weights, expected)


def test_folded_start_equals_unfolded_in_value_and_gradient(decoder, memory):
    folded = decoder(memory, decoder.queries())
    unfolded = decoder(memory, decoder.queries(batch=4))
    torch.testing.assert_close(folded, unfolded)
    torch.testing.assert_close(folded, decoder(memory))
    gradients = [torch.autograd.grad(out.pow(2).sum(), decoder.labels)[0] for out in (folded, unfolded)]
    torch.testing.assert_close(*gradients)


def test_a_held_start_keeps_the_first_self_attention_out(tiny_model, images):
    """What an exporter relies on: with the start as constants, no result depends on the parameters behind it."""
    model = tiny_model(blocks=2).eval()
    start = tuple(x.detach() for x in model.decoder.queries())
    assert [tuple(x.shape) for x in start] == [(1, 4, 32), (1, 4, 4, 8)]
    logits = model.classify(model.features(images), start)
    torch.testing.assert_close(logits, model(images))
    logits.sum().backward()
    first = model.decoder.blocks[0]
    behind = [model.decoder.labels, *first.self_attention.parameters(), *first.norm_self.parameters()]
    assert all(p.grad is None for p in [*behind, *first.cross_attention.query.parameters()])
    assert all(p.grad is not None for p in first.cross_attention.key.parameters())


@pytest.mark.parametrize(("training", "dropout", "batch"), [(True, 0.3, 4), (True, 0.0, 1), (False, 0.3, 1)])
def test_images_draw_their_own_dropout_masks(memory, training, dropout, batch):
    decoder = LabelDecoder(labels=5, width=24, blocks=1, heads=3, ffn=40, dropout=dropout).train(training)
    states = []
    decoder.blocks[0].norm_self.register_forward_hook(lambda module, args, output: states.append(output))
    decoder(memory)
    assert states[0].shape == (batch, 5, 24)
    if batch > 1:
        assert not torch.equal(states[0][0], states[0][1])


def test_linear_projection_keeps_places(tiny_model, images):
    """Tokens in another order: the same logits, and the attention moves with them."""
    model = tiny_model(projection="linear", blocks=2).eval()
    tokens = model.features(images)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(4))
    weights = model.cross_attention(tokens)
    assert weights.shape == (3, 4, 4, 16)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 4, 4))
    torch.testing.assert_close(model.cross_attention(tokens[:, order]), weights[..., order])
    torch.testing.assert_close(model.classify(tokens[:, order]), model.classify(tokens))


@pytest.mark.parametrize("changes", [{"projection": "reshape"}, {"method": "pool"}])
def test_attention_that_is_not_over_places_is_refused(tiny_model, images, changes):
    model = tiny_model(**changes)
    with pytest.raises(DataError, match=r"projection linear only.*Grad-CAM"):
        model.cross_attention(model.features(images))


def test_group_head_sees_one_label_at_a_time(tiny_model):
    head = tiny_model(head="group").head
    states = torch.randn(2, 4, 32)
    expected = torch.stack([states[:, k] @ head.weight[k] + head.bias[k] for k in range(4)], dim=1)
    torch.testing.assert_close(head(states), expected)


def test_flatten_head_is_one_linear_layer_on_all_states(tiny_model):
    head = tiny_model().head
    states = torch.randn(2, 4, 32)
    assert head.linear.weight.shape == (4, 4 * 32)
    torch.testing.assert_close(head(states), states.reshape(2, -1) @ head.linear.weight.T + head.linear.bias)


def test_fusion_reads_three_stages_on_the_middle_grid(tiny_model, images):
    model = tiny_model("test_resnet", method="fusion").eval()
    stages = model.backbone.forward_intermediates(images, indices=3, intermediates_only=True)
    assert model.layout.grid == tuple(stages[1].shape[-2:])
    whole = model.projection(stages)
    for i in range(3):
        without = [torch.zeros_like(s) if i == j else s for j, s in enumerate(stages)]
        assert not torch.allclose(model.projection(without), whole), f"stage {i} does not count"


def test_parameters_that_reach_no_feature_are_frozen(tiny_model):
    model = tiny_model("test_convnext")
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["backbone.head.norm.weight", "backbone.head.norm.bias"]


def test_seed_decides_the_weights_and_leaves_the_generator_alone(tiny_config):
    def weights(seed):
        return torch.cat([p.detach().flatten() for p in build_model(tiny_config(), seed=seed).parameters()])

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first = weights(5)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(weights(5), first)
    assert not torch.equal(weights(6), first)


def test_drop_path_reaches_the_backbone(tiny_config):
    def rates(drop_path):
        modules = build_model(tiny_config(drop_path=drop_path)).backbone.modules()
        return [m.drop_prob for m in modules if type(m).__name__ == "DropPath"]

    assert max(rates(0.2), default=0) == pytest.approx(0.2)
    assert max(rates(0.0), default=0) == 0


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        ("resnet1O1", {}, "has no model 'resnet1O1'; did you mean resnet101"),
        ("zzzzzzzz", {}, r"timm.list_models\(\) lists them"),
        ("resnet101.zz", {}, "has no weights 'zz'; there are: a1_in1k"),
        ("vgg11", {"drop_path": 0.1}, "timm cannot build vgg11 with {'drop_path_rate': 0.1}"),
        ("crossvit_9_240", {"image_size": 240}, "gives list; needed is a feature map or tokens"),
    ],
)
def test_a_backbone_that_cannot_be_says_why(tiny_config, backbone, changes, message):
    with pytest.raises(DataError, match=message):
        build_model(tiny_config(backbone, **changes))


def test_import_timm_can_be_repeated():
    assert import_timm() is import_timm()
