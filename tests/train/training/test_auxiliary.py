"""Auxiliary names: learned beside the labels, resumed to the same bits, and in no checkpoint."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from mineral_batch.errors import DataError, MineralError
from mineral_train.data.manifest import Row
from mineral_train.training.auxiliary import AuxiliaryNames, WithAuxiliary
from mineral_train.training.checkpoint import load_checkpoint, load_state
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit
from mineral_train.training.run_folder import STATE

from .resuming import assert_same_bits_after_stops

HERE = RunOptions(device="cpu", workers=0, quiet=True)
LABELS = ("agate", "gold", "pyrite", "quartz")


def _rows(*cells, column="rock"):
    return [Row(Path(f"{number}.jpg"), (), "train", {column: cell}) for number, cell in enumerate(cells)]


@pytest.fixture
def recipe(tiny_config):
    """A recipe of a tiny CNN that pools, with auxiliary names."""

    def make(**changes):
        values = {
            "pretrained": "none", "epochs": 2, "batch": 8, "lr": 1e-3, "augment": "", "aux_column": "rock",
            "aux_least": 2,
        }  # fmt: skip
        config = tiny_config(changes.pop("backbone", "test_efficientnet"), method=changes.pop("method", "pool"))
        return TrainConfig(config, **(values | changes))

    return make


@pytest.fixture
def manifest(colored_manifest, tmp_path):
    """The colored photographs with a column `rock`: basalt in half of them, granite in a third, one of gabbro."""
    with colored_manifest.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["path,labels,split,rock"]
    for number, row in enumerate(rows):
        names = [name for name, every in (("Basalt", 2), ("granite", 3), ("gabbro", 40)) if number % every == 0]
        path = colored_manifest.parent / row["path"]
        lines.append(f"{path},{row['labels']},{row['split']},{';'.join(names)}")
    table = tmp_path / "rocks.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def test_names_are_counted_without_case_and_labels_are_left_out():
    rows = _rows("Basalt; granite", "basalt", "", "granite;Quartz;basalt", "gabbro", "quartz", "none")
    found = AuxiliaryNames.read(rows, "rock", 2, LABELS)
    assert found.names == ("basalt", "granite")
    assert found.targets.tolist() == [[1, 1], [1, 0], [0, 0], [1, 1], [0, 0], [0, 0], [0, 0]]


def test_a_column_that_only_one_of_the_manifests_has():
    rows = [*_rows("basalt", "basalt"), *_rows("x", "y", column="notes")]
    assert AuxiliaryNames.read(rows, "rock", 2, LABELS).targets.flatten().tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("column", "least", "words"),
    [
        ("rocks", 1, r"no column 'rocks' beside path, labels and split; did you mean 'rock'\?"),
        ("weight", 1, "no column 'weight' beside path, labels and split; there are: rock"),
        ("rock", 3, "no name in the column 'rock' that is not a label is in 3 or more of the 3 training images"),
    ],
)
def test_a_column_without_names_is_refused(column, least, words):
    with pytest.raises(DataError, match=words):
        AuxiliaryNames.read(_rows("basalt", "basalt", "gold"), column, least, LABELS)


def test_the_second_head_begins_with_the_prevalence_and_leaves_the_model_alone(tiny_model, images):
    model = tiny_model("test_efficientnet", method="pool").eval()
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    state = torch.random.get_rng_state()
    whole = WithAuxiliary(model, targets, torch.tensor([1.0, 1.0, 2.0])).eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        logits = whole(images)
        torch.testing.assert_close(logits[:, :4], model(images))
    torch.testing.assert_close(logits[:, 4:].sigmoid(), torch.tensor([[0.75, 0.5]] * 3))


def test_auxiliary_names_are_trained_and_not_kept(recipe, manifest, tmp_path):
    said = []
    fit(recipe(epochs=1), manifest, tmp_path / "run", HERE, say=said.append)
    assert any(line.startswith("2 auxiliary names from the column 'rock' (basalt, granite)") for line in said)
    state = load_state(tmp_path / "run" / STATE)[0]
    weight = state["model/auxiliary.weight"]
    assert weight.shape[0] == 2
    assert weight.abs().sum() > 0
    model, contract = load_checkpoint(tmp_path / "run")
    assert not any("auxiliary" in name for name in model.state_dict())
    assert contract.labels == LABELS
    assert contract.provenance["recipe"]["aux_column"] == "rock"


@pytest.mark.slow
def test_the_auxiliary_names_teach_the_backbone(recipe, manifest, tmp_path):
    """A weight of 0 trains the model as a run without them does; any other changes it."""
    weights = {}
    for name, changes in {"none": {"aux_column": ""}, "zero": {"aux_weight": 0.0}, "some": {}}.items():
        fit(recipe(epochs=1, **changes), manifest, tmp_path / name, HERE)
        weights[name] = load_checkpoint(tmp_path / name)[0].state_dict()
    same = [torch.equal(weights["none"][name], weights["zero"][name]) for name in weights["none"]]
    assert all(same)
    assert not torch.equal(weights["none"]["backbone.conv_stem.weight"], weights["some"]["backbone.conv_stem.weight"])


def test_another_column_is_another_run(recipe, manifest, tmp_path):
    def stop(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), manifest, tmp_path / "run", HERE, on_epoch=stop)
    with pytest.raises(MineralError, match="aux-column: 'rock' -> ''"):
        fit(recipe(aux_column=""), manifest, tmp_path / "run", HERE)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "method"), [("test_efficientnet", "pool"), ("test_vit", "decoder")])
def test_a_run_with_auxiliary_names_resumes_to_the_same_bits(recipe, manifest, tmp_path, backbone, method):
    config = recipe(
        epochs=3, backbone=backbone, method=method, cutmix=0.4, mixup=0.3, vertical_flip=0.3, ema=0.9, smoothing=0.1,
        positive_weight="sqrt-inverse", clip=1.0, accumulate=2, loss="hill", freeze_epochs=1,
    )  # fmt: skip
    assert_same_bits_after_stops(config, manifest, tmp_path, HERE)
