"""`adapt --backbone`: frozen features of timm beside the starter's, their license, and a hub that does not answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from mineral_batch import Predictor
from mineral_batch.images.decode import load_image
from mineral_batch.model.onnx_file import read_contract
from mineral_train.adapt import backbones
from mineral_train.adapt.graph import LinearHead
from mineral_train.cli import main
from mineral_train.model.backbones import create_backbone
from mineral_train.model.pretrained import NoWeightsError

TINY = "test_convnext.r160_in1k"


@pytest.fixture
def photos(tmp_path):
    """40 images: half of them reddish, labeled `my red`."""
    rng = np.random.default_rng(0)
    lines = ["path,labels"]
    for number in range(40):
        pixels = rng.integers(0, 90, (24, 20, 3))
        pixels[..., 0] += 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{'my red' if number % 2 else ''}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def adapt(table, *options, code=0):
    output = table.with_name("mine.onnx")
    result = CliRunner().invoke(main, ["adapt", str(table), "-o", str(output), *map(str, options)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def _weights(name, path):
    torch.manual_seed(0)
    save_file(create_backbone(name, 160).state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", [TINY, "test_vit.r160_in1k"])
def test_a_backbone_becomes_a_model(photos, tmp_path, monkeypatch, name):
    weights = _weights(name, tmp_path / "w.safetensors")
    # Whichever features are better: this test is about the backbone's.
    monkeypatch.setattr("mineral_train.cli.adapt.min", lambda found, key: found[-1], raising=False)
    out = adapt(photos, "--backbone", name, "--weights", weights)
    assert f"Loading {name} (apache-2.0)" in out
    assert "starter" in out
    contract = read_contract(tmp_path / "mine.onnx")
    assert contract.labels == ("my red",)
    assert contract.license.startswith("apache-2.0")
    assert contract.provenance["backbone"].startswith(f"{name} of timm")
    assert contract.provenance["weights"] == "w.safetensors"
    assert contract.familiarity is None
    with Predictor(tmp_path / "mine.onnx") as predictor:
        answers = [r.probabilities[0] for r in predictor.predict([tmp_path / f"{n}.png" for n in range(40)])]
    assert min(answers[1::2]) > max(answers[0::2])


@pytest.mark.slow
def test_the_file_has_the_features_that_torch_computes(tmp_path, save_photo):
    backbone = backbones.Backbone(TINY, _weights(TINY, tmp_path / "w.safetensors"))
    photo = save_photo(tmp_path / "a.jpg", 1)
    path = backbones.make_base(backbone, tmp_path / "f", [photo])
    assert backbones.make_base(backbone, tmp_path / "f", []) == path  # kept
    model = create_backbone(TINY, 160)
    model.load_state_dict(load_file(tmp_path / "w.safetensors"))
    spec = read_contract(path).input
    pixels = load_image(photo, spec).pixels
    normal = (pixels / 255 - np.array(spec.mean)) / np.array(spec.std)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(normal.astype(np.float32).transpose(2, 0, 1)[None])).numpy()
    session = LinearHead.read(path).feature_session()
    found = session.run(None, {"pixels": pixels[None]})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4 + 1e-3 * expected.std())


@pytest.mark.slow
def test_a_file_that_answers_differently_is_not_kept(tmp_path, monkeypatch):
    backbone = backbones.Backbone(TINY, _weights(TINY, tmp_path / "w.safetensors"))
    monkeypatch.setattr(backbones, "_TOLERANCE", -1.0)
    with pytest.raises(backbones.DataError, match="differ from torch's"):
        backbones.make_base(backbone, tmp_path / "f", [])
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_patch16_dinov3.lvd1689m", "forbid military and nuclear uses"),
        ("convnextv2_tiny.fcmae_ft_in1k", "non-commercial use only"),
    ],
)
def test_a_restrictive_license_is_told_before_it_is_used(photos, name, words):
    out = adapt(photos, "--backbone", name, code=1)
    assert words in out
    assert "--accept-license" in out
    assert not photos.with_name("mine.onnx.features").exists()
    assert backbones.license_warning(backbones.Backbone(name))


def test_the_short_list_exists_in_timm_and_is_free():
    for name in backbones.SHORT_LIST:
        assert backbones.Backbone(name).is_free


@pytest.mark.slow
def test_without_the_hub_one_line_says_what_was_tried(photos, monkeypatch):
    def silent(name):
        raise NoWeightsError(name, "https://hub.example/x", "no route to host")

    monkeypatch.setattr("mineral_train.model.pretrained.require_hub_weights", silent)
    out = adapt(photos, "--backbone", "auto")
    (line,) = [line for line in out.splitlines() if line.startswith("Not compared")]
    assert "no route to host" in line
    assert all(name in line for name in backbones.SHORT_LIST)
    assert photos.with_name("mine.onnx").exists()


def test_mistakes_are_one_line(photos, tmp_path):
    assert "belongs to one --backbone NAME" in adapt(photos, "--weights", tmp_path / "w", code=2)
    assert "no such weights file" in adapt(photos, "--backbone", TINY, "--weights", tmp_path / "w", code=1)
    assert "has no model 'vit_of_mine'" in adapt(photos, "--backbone", "vit_of_mine", code=1)
