"""A checkpoint as an ONNX file: the same output, one file, whole or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from mineral_batch.engines.registry import open_backend
from mineral_batch.model.contract import ModelContract
from mineral_batch.model.onnx_file import read_contract
from mineral_export.cli import main
from mineral_export.export_model import ExportModel
from mineral_export.onnx import export as export_room
from mineral_export.onnx.attention import as_one_operator
from mineral_export.onnx.export import export_onnx
from mineral_export.verify.budget import TOLERANCE
from mineral_export.verify.parity import ParityError
from mineral_export.verify.samples import first_images, synthetic_images
from mineral_train.model.network import PRESETS, build_model, input_spec
from mineral_train.training.checkpoint import save_checkpoint

SLOW = pytest.mark.slow


@pytest.fixture
def vit(exported):
    """A ViT with a label decoder."""
    return exported(projection="linear")


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"projection": "linear"}, id="vit, linear"),
        pytest.param({"backbone": "test_efficientnet"}, id="cnn, decoder"),
        pytest.param({"backbone": "test_efficientnet", "method": "pool"}, id="cnn, pool"),
        pytest.param({"projection": "reshape", "image_size": 128}, id="vit, reshape", marks=SLOW),
        pytest.param({"projection": "linear", "blocks": 2}, id="vit, linear, two blocks", marks=SLOW),
        pytest.param({"projection": "linear", "head": "group"}, id="vit, group head", marks=SLOW),
        pytest.param({"backbone": "test_resnet", "method": "fusion"}, id="cnn, fusion", marks=SLOW),
    ],
)
def test_every_kind_of_model_gives_torchs_probabilities(options, exported):
    model, contract, path = exported(**options)
    images = synthetic_images(contract.input)
    expected = ExportModel(model, contract.input).infer(images)
    found = open_backend(path, "onnx-cpu").infer(images)
    largest = float(np.abs(found - expected).max())
    assert largest < 1e-5
    assert found.std(axis=0).max() > 100 * largest, "the same for every image: parity proved nothing"


def test_probabilities_do_not_depend_on_the_batch(vit):
    _, contract, path = vit
    pixels = synthetic_images(contract.input, 7)
    backend = open_backend(path, "onnx-cpu")
    together = backend.infer(pixels)
    alone = np.concatenate([backend.infer(pixels[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_contract_is_inside_and_the_graph_is_as_documented(vit):
    _, contract, path = vit
    assert read_contract(path) == contract
    graph = onnx.load(path).graph
    (pixels,), (probabilities,) = graph.input, graph.output
    assert (pixels.name, pixels.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim] == ["N", 64, 64, 3]
    assert (probabilities.name, probabilities.type.tensor_type.elem_type) == ("probabilities", onnx.TensorProto.FLOAT)
    onnx.checker.check_model(str(path), full_check=True)


def test_layer_norm_stays_one_operator(vit):
    operators = {node.op_type for node in onnx.load(vit.path).graph.node}
    assert "LayerNormalization" in operators
    assert not operators & {"ReduceMean", "Pow"}


def blocks(model):
    return [module for module in model.modules() if type(module).__name__ == "Attention" and hasattr(module, "qkv")]


def test_from_opset_23_on_attention_is_one_operator_without_slices_and_transpositions(exported):
    model, _, path = exported(projection="linear", opset=23)
    graph = onnx.load(path).graph
    makers = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    assert len(attentions) == len(blocks(model)) > 0
    for node in attentions:
        assert {makers[name].op_type for name in node.input} == {"Split"}
        assert readers[node.output[0]].op_type == "MatMul"
    assert not any("forward" in vars(block) for block in blocks(model)), "the module is as it was"


@SLOW
def test_a_vit_that_normalizes_its_queries_keeps_its_own_attention(tiny, tmp_path):
    model, contract = tiny(projection="linear")
    for block in blocks(model):
        block.q_norm, block.k_norm = torch.nn.LayerNorm(block.head_dim), torch.nn.LayerNorm(block.head_dim)
    assert export_onnx(model, contract, tmp_path / "model.onnx", opset=23).parity.largest < 1e-5


@SLOW
def test_a_vit_that_gates_its_attention_keeps_its_own(tiny, tmp_path):
    model, contract = tiny(projection="linear")
    for block in blocks(model):
        block.gate = torch.nn.Linear(block.qkv.in_features, block.proj.in_features)
    assert export_onnx(model, contract, tmp_path / "model.onnx", opset=23).parity.largest < 1e-5


def test_attention_of_a_timm_before_it_had_a_norm(tiny):
    model, _ = tiny(projection="linear")
    block = blocks(model)[0]
    x = torch.randn(1, 5, block.qkv.in_features)
    before = block(x)
    del block.norm
    with as_one_operator(model):
        assert torch.allclose(block(x), before, atol=1e-5)


def test_the_label_self_attention_is_folded_away(vit):
    model, _, path = vit
    weights = {tuple(w.dims) for w in onnx.load(path).graph.initializer}
    labels, width = model.decoder.labels.shape
    assert (1, labels, width) in weights or (labels, width) in weights
    in_graph = sum(int(np.prod(w.dims)) for w in onnx.load(path).graph.initializer)
    folded = sum(p.numel() for p in model.decoder.blocks[0].self_attention.parameters())
    everything = sum(p.numel() for p in model.parameters())
    assert in_graph < everything - folded + 3 * labels * width


def test_exporting_leaves_the_model_able_to_train(vit, tiny):
    model, _, _ = vit
    before = tiny(projection="linear")[0].state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


@pytest.fixture
def traced(vit, monkeypatch):
    """The export writes a graph that was traced before."""

    def copy(model, path, contract, opset):
        shutil.copyfile(vit.path, path)

    monkeypatch.setattr(export_room, "_trace", copy)


def test_a_file_with_other_output_is_not_written(tiny, tmp_path, traced):
    model, contract = tiny(projection="linear")
    older = tmp_path / "model.onnx"
    older.write_bytes(b"an earlier export")
    with pytest.raises(ParityError, match="nothing was written: largest difference"):
        export_onnx(model, contract, older, tolerance=-1.0)
    assert older.read_bytes() == b"an earlier export"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_a_probability_that_is_not_a_number_is_refused(tiny, tmp_path, traced):
    model, contract = tiny(projection="linear")
    with torch.no_grad():
        model.head.linear.bias.fill_(float("nan"))
    with pytest.raises(ParityError):
        export_onnx(model, contract, tmp_path / "model.onnx")


@SLOW
def test_wrong_normalization_in_the_contract_changes_the_answers(tiny, tmp_path):
    """The graph normalizes by the contract it carries, so no other preprocessing can be applied by mistake."""
    model, contract = tiny(projection="linear")
    other = replace(contract, input=replace(contract.input, mean=(0.1, 0.2, 0.3)))
    pixels = synthetic_images(contract.input)
    answers = []
    for name, described in (("a", contract), ("b", other)):
        export_onnx(model, described, tmp_path / f"{name}.onnx")
        answers.append(open_backend(tmp_path / f"{name}.onnx", "onnx-cpu").infer(pixels))
    assert np.abs(answers[0] - answers[1]).max() > TOLERANCE


def test_the_command_exports_a_checkpoint_and_verifies_on_photographs(tiny, tmp_path, traced):
    model, contract = tiny(projection="linear")
    save_checkpoint(tmp_path / "run", model, contract)
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, pixels in enumerate(synthetic_images(contract.input, 3)):
        Image.fromarray(pixels).save(photos / f"{index}.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    given = ["--photos", str(photos), "--name", "new name", "--license", "CC0-1.0"]
    done = CliRunner().invoke(main, ["onnx", str(tmp_path / "run"), *given])
    assert done.exit_code == 0, done.output
    assert " of 3 photographs of" in done.output
    assert read_contract(tmp_path / "run" / "model.onnx") == replace(contract, name="new name", license="CC0-1.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a checkpoint"),
        (["run", "-o", "no/such/folder/model.onnx"], "no such folder: no/such/folder"),
        (["run", "-o", "empty"], "empty is a folder: name a file with -o, such as empty/model.onnx"),
        (["run", "-o", "x" * 300], "File name too long; choose another place with -o"),
        (["run", "--photos", "missing"], "no such file or folder: missing"),
        (["run", "--photos", "empty"], "no image under empty"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    save_checkpoint("run", *tiny(projection="linear"))
    done = CliRunner().invoke(main, ["onnx", *arguments])
    assert done.exit_code == 1
    assert message in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.onnx"))


def test_photographs_skip_what_cannot_be_read(tmp_path, tiny):
    _, contract = tiny(projection="linear")
    (tmp_path / "a.jpg").write_bytes(b"")
    Image.new("RGB", (10, 20), "red").save(tmp_path / "b.png")
    assert first_images([tmp_path], contract.input, 8).tolist() == np.full((1, 64, 64, 3), (255, 0, 0)).tolist()


# The backbones at full width and depth, on small pictures and a narrow decoder so that each takes seconds.
_SIZES = {"vit-b16-384": 64, "swin-b-384": 192}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_exports(name, tmp_path):
    config = replace(PRESETS[name], image_size=_SIZES.get(name, 96), width=64, ffn=64)
    model = build_model(config, seed=0)
    contract = ModelContract(config.labels, (0.5,) * len(config.labels), input_spec(config))
    result = export_onnx(model, contract, tmp_path / "model.onnx")
    assert result.parity.largest < 1e-5
