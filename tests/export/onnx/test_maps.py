"""Maps in the exported graph: equal to torch's, for every batch and each picture's own labels, for ViTs and CNNs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from mineral_batch.engines.registry import open_backend
from mineral_batch.errors import DataError
from mineral_batch.explain.explainer import open_explainer
from mineral_batch.explain.maps import MAPS_KEY, MapSpec
from mineral_batch.model.onnx_file import read_metadata
from mineral_export.cli import main
from mineral_export.export_model import ExportModel
from mineral_export.onnx import with_maps
from mineral_export.onnx.export import export_onnx
from mineral_export.verify.parity import ParityError
from mineral_export.verify.samples import synthetic_images
from mineral_train.maps import cross_attention, grad_cam
from mineral_train.training.checkpoint import save_checkpoint

# Two heads, two maps and a batch of two would be one number to the tracer: sizes that meet are the point.
VARIANTS = {"vit, decoder": ({"projection": "linear"}, "grad-cam")}
MORE = {
    "cnn, decoder": ({"backbone": "test_efficientnet"}, "grad-cam"),
    "cnn, pool": ({"backbone": "test_efficientnet", "method": "pool"}, "grad-cam"),
    "vit, attention": ({"projection": "linear"}, "cross-attention"),
    "vit, reshape, two blocks": ({"projection": "reshape", "image_size": 128, "blocks": 2}, "grad-cam"),
    "vit, group head": ({"projection": "linear", "head": "group"}, "grad-cam"),
    "cnn, stages": ({"backbone": "test_resnet", "method": "pool", "stages": 2}, "grad-cam"),
    "cnn, fusion": ({"backbone": "test_resnet", "method": "fusion"}, "grad-cam"),
    "cnn, attention, two blocks": ({"backbone": "test_efficientnet", "blocks": 2}, "cross-attention"),
}


def balance(model, contract, pixels):
    """Make every logit's mean over the pictures zero, so that not all show the same label first."""
    plain = ExportModel(model, contract.input)
    (bias,) = (parameter for name, parameter in model.head.named_parameters() if name.endswith("bias"))
    with torch.no_grad():
        bias -= torch.logit(plain(torch.from_numpy(pixels))).mean(dim=0)


def check(model, contract, path, method):
    """Everything that a file with maps promises, on one export."""
    pixels = synthetic_images(contract.input, 7)
    balance(model, contract, pixels)
    export_onnx(model, contract, path, explain=method, top=2)
    spec = MapSpec.from_json(read_metadata(path)[MAPS_KEY])
    assert spec == MapSpec(method, model.layout.grid, 2)
    plain = ExportModel(model, contract.input)
    with torch.no_grad():
        probabilities = plain(torch.from_numpy(pixels)).numpy()
    reference = {"grad-cam": grad_cam, "cross-attention": cross_attention}[method]
    x = plain.normalize(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))
    with open_explainer(path) as explainer:
        together = explainer.infer(pixels)
        np.testing.assert_allclose(together.probabilities, probabilities, atol=1e-5)
        np.testing.assert_array_equal(together.labels, np.argsort(-probabilities, axis=1)[:, :2])
        assert len(set(together.labels[:, 0].tolist())) > 1, "one common target for the whole batch would pass"
        expected = reference(model, x, torch.from_numpy(together.labels)).numpy()
        np.testing.assert_allclose(together.maps, expected, atol=1e-3)
        assert np.corrcoef(together.maps.ravel(), expected.ravel())[0, 1] > 0.999
        for batch in (1, 2, 5):
            alone = explainer.infer(pixels[:batch])
            for one, all_ in zip(alone, together, strict=True):
                np.testing.assert_allclose(one, all_[:batch], atol=1e-5)
    np.testing.assert_allclose(open_backend(path, "onnx-cpu").infer(pixels), probabilities, atol=1e-5)
    held = sum(int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer)
    assert held < 1.5 * sum(tensor.numel() for tensor in model.state_dict().values()), "weights are in the file twice"


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_maps_are_torchs(variant, tiny, tmp_path):
    options, method = VARIANTS[variant]
    check(*tiny(**options), tmp_path / "model.onnx", method)


@pytest.mark.slow
@pytest.mark.parametrize("variant", MORE)
def test_the_maps_of_other_models_are_torchs(variant, tiny, tmp_path):
    options, method = MORE[variant]
    check(*tiny(**options), tmp_path / "model.onnx", method)


@pytest.mark.parametrize(
    "options",
    [{"backbone": "test_efficientnet"}, pytest.param({"backbone": "test_resnet", "stages": 2}, marks=pytest.mark.slow)],
)
def test_a_model_that_pools_has_torchs_maps_without_being_asked(options, tiny, tmp_path):
    model, contract = tiny(method="pool", **options)
    pixels = synthetic_images(contract.input, 5)
    balance(model, contract, pixels)
    export_onnx(model, contract, tmp_path / "model.onnx")
    with open_explainer(tmp_path / "model.onnx") as explainer:
        assert explainer.maps == MapSpec("grad-cam", model.layout.grid, len(contract.labels))
        answer = explainer.infer(pixels)
    np.testing.assert_array_equal(answer.probabilities, open_backend(tmp_path / "model.onnx", "onnx-cpu").infer(pixels))
    x = ExportModel(model, contract.input).normalize(torch.from_numpy(pixels).float().permute(0, 3, 1, 2))
    expected = grad_cam(model, x, torch.from_numpy(answer.labels)).numpy()
    np.testing.assert_allclose(answer.maps, expected, atol=1e-3)


@pytest.mark.slow
def test_a_file_whose_maps_differ_is_not_written(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(with_maps, "MAP_TOLERANCE", -1.0)
    model, contract = tiny(backbone="test_efficientnet", method="pool")
    with pytest.raises(ParityError, match="a map differs from torch"):
        export_onnx(model, contract, tmp_path / "model.onnx", explain="grad-cam")
    assert not list(tmp_path.iterdir())


def test_a_model_without_places_for_attention_is_refused_before_it_is_traced(tiny, tmp_path):
    model, contract = tiny(backbone="test_efficientnet", method="pool")
    with pytest.raises(DataError, match="use Grad-CAM"):
        export_onnx(model, contract, tmp_path / "model.onnx", explain="cross-attention")


def test_no_more_maps_than_labels(tiny):
    model, contract = tiny(backbone="test_efficientnet", method="pool")
    module = with_maps.ExportModelWithMaps(model, contract.input, "grad-cam", 50)
    assert module.maps.top == len(contract.labels)
    _, labels, maps = module(torch.from_numpy(synthetic_images(contract.input, 2)))
    assert labels.shape == (2, 3)
    assert maps.shape == (2, 3, *model.layout.grid)


@pytest.mark.slow
def test_the_command_says_how_to_look_at_the_maps(tiny, tmp_path):
    save_checkpoint(tmp_path / "run", *tiny(backbone="test_efficientnet", method="pool"))
    done = CliRunner().invoke(main, ["onnx", str(tmp_path / "run"), "--top", "1", "--explain"])
    assert done.exit_code == 0, done.output
    assert "Same maps as the checkpoint (grad-cam)" in done.output
    assert MapSpec.from_json(read_metadata(tmp_path / "run" / "model.onnx")[MAPS_KEY]).top == 1
