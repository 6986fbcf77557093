from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mineral_batch.errors import DataError
from mineral_train.model.backbones import import_timm
from mineral_train.model.network import build_model

timm = import_timm()


@pytest.fixture
def original():
    """A timm model with classifier, as it would be published: all tensors random, also BatchNorm's statistics."""

    def make(name="test_vit", **options):
        torch.manual_seed(0)
        model = timm.create_model(name, **options).eval()
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.01, 0.1)
        return model

    return make


def same_features(model, original, size=64) -> bool:
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = original.forward_features(images)
        return torch.equal(model.backbone.eval().forward_features(images), expected)


def test_safetensors_by_name(tmp_path, tiny_config, original):
    published = original(img_size=64)
    save_file(published.state_dict(), tmp_path / "vit.safetensors")
    model = build_model(tiny_config(), pretrained=tmp_path / "vit.safetensors")
    assert same_features(model, published)
    assert model.loaded.matched == "name"
    assert model.loaded.resampled == ()
    assert set(model.loaded.dropped) == {"head.weight", "head.bias"}
    assert model.loaded.tensors == len(published.state_dict()) - 2
    assert "from vit.safetensors; left out head" in str(model.loaded)


@pytest.mark.parametrize("options", [{}, {"num_classes": 0}], ids=["with classifier", "without"])
def test_torch_file_by_order_when_only_the_names_differ(tmp_path, tiny_config, original, options):
    published = original("test_efficientnet", **options)
    renamed = {f"_port.{i}": tensor for i, tensor in enumerate(published.state_dict().values())}
    torch.save(renamed, tmp_path / "port.pth")
    model = build_model(tiny_config("test_efficientnet"), pretrained=tmp_path / "port.pth")
    assert same_features(model, published)
    assert model.loaded.matched == "order"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"head.linear.bias": torch.zeros(4)} | {f"backbone.{n}": t for n, t in state.items()},
    ],
    ids=["timm's training", "official releases", "distributed", "our own checkpoint"],
)
def test_wrappers_are_taken_off(tmp_path, tiny_config, original, wrap):
    published = original("test_resnet")
    torch.save(wrap(published.state_dict()), tmp_path / "wrapped.pth")
    model = build_model(tiny_config("test_resnet"), pretrained=tmp_path / "wrapped.pth")
    assert same_features(model, published)


def test_position_embeddings_are_resampled_to_the_grid(tmp_path, tiny_config, original):
    from timm.layers import resample_abs_pos_embed

    published = original()  # 160 pixels: 10 x 10 places
    torch.save(published.state_dict(), tmp_path / "vit.pth")
    model = build_model(tiny_config(), pretrained=tmp_path / "vit.pth")
    assert model.loaded.resampled == ("pos_embed",)
    prefix = 0 if published.no_embed_class else published.num_prefix_tokens
    expected = resample_abs_pos_embed(published.pos_embed, [4, 4], num_prefix_tokens=prefix)
    torch.testing.assert_close(model.backbone.pos_embed, expected)
    assert torch.equal(model.backbone.blocks[0].mlp.fc1.weight, published.blocks[0].mlp.fc1.weight)


def test_the_loaded_record_is_not_kept_in_the_model(tmp_path, tiny_config, original):
    torch.save(original().state_dict(), tmp_path / "vit.pth")
    model = build_model(tiny_config(), pretrained=tmp_path / "vit.pth")
    assert not model.backbone.pretrained_cfg.get("state_dict")


def test_weights_of_another_model_are_refused(tmp_path, tiny_config, original):
    torch.save(original("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(DataError, match=r"resnet.pth does not hold the weights of test_vit: .* missing, the first is"):
        build_model(tiny_config(), pretrained=tmp_path / "resnet.pth")


def test_a_misshapen_tensor_is_named(tmp_path, tiny_config, original):
    state = original("test_resnet").state_dict()
    state["layer2.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(DataError, match=r"layer2.0.conv1.weight is \(1, 2, 3, 3\), the model's is \("):
        build_model(tiny_config("test_resnet"), pretrained=tmp_path / "odd.pth")


class Trap:
    def __reduce__(self):
        return (Path("trap").touch, ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("trap.pth", pickle.dumps(Trap(), protocol=2), "not safe"),
        ("cut.pth", b"PK\x03\x04 not a whole archive", "cannot read|not a torch file"),
        ("cut.safetensors", b"\xff\xff", "cannot read .* as safetensors"),
        ("empty.pth", b"", "cannot read|not a torch file"),
    ],
)
def test_damaged_and_dangerous_files_are_refused(tmp_path, monkeypatch, tiny_config, name, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_model(tiny_config(), pretrained=tmp_path / name)
    assert not Path("trap").exists()


def test_a_file_of_something_else_is_refused(tmp_path, tiny_config):
    torch.save({"epoch": 3}, tmp_path / "log.pth")
    with pytest.raises(DataError, match="has no named tensors"):
        build_model(tiny_config(), pretrained=tmp_path / "log.pth")


def test_a_missing_file_is_named(tmp_path, tiny_config):
    with pytest.raises(DataError, match=r"no such weights file: .*none\.pth"):
        build_model(tiny_config(), pretrained=tmp_path / "none.pth")


def test_offline_says_what_to_do(tmp_path, monkeypatch, tiny_config):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError,
        match=r"https://.*mobilenetv2.*/model.safetensors \(HF_HUB_OFFLINE is set\); download that file ",
    ):
        build_model(tiny_config("mobilenetv2_100.ra_in1k"), pretrained=True)


def test_a_model_without_weights_says_so(tiny_config):
    without = next(n for n in timm.list_models("resnet*") if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(DataError, match=f"timm has no weights for {without}"):
        build_model(tiny_config(without), pretrained=True)


def test_random_weights_say_so(tiny_model):
    assert str(tiny_model().loaded) == "backbone: random weights"
