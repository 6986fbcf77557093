"""A checkpoint comes back as it was, and a damaged or foreign one is one line."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import torch

from mineral_batch.errors import DataError
from mineral_batch.model.contract import ModelContract
from mineral_train.training import checkpoint
from mineral_train.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def saved(tiny_model, tmp_path):
    model = tiny_model("test_resnet").eval()
    contract = ModelContract(model.config.labels, (0.5,) * 4, name="tiny")
    save_checkpoint(tmp_path / "ckpt", model, contract, train={"epochs": 3})
    return model, contract, tmp_path / "ckpt"


def test_weights_contract_and_outputs_come_back(saved, images):
    model, contract, folder = saved
    loaded, its_contract = load_checkpoint(folder)
    assert its_contract == contract
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(images), model(images))


def test_only_safetensors_and_json_are_written(saved):
    _, _, folder = saved
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text("utf-8"))["train"] == {"epochs": 3}


def test_channels_last_weights_come_back(tiny_model, tmp_path):
    model = tiny_model("test_resnet").to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, model, ModelContract(model.config.labels, (0.5,) * 4))
    state = load_checkpoint(tmp_path)[0].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _no_json(folder):
    (folder / "config.json").write_text("{", "utf-8")


def _edit(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "is not a checkpoint"),
        (lambda folder: (folder / "model.safetensors").unlink(), "missing or was cut off"),
        (_cut, "missing or was cut off"),
        (_no_json, "cannot read"),
        (_edit(checkpoint="another"), "from different epochs"),
        (lambda folder: (folder / "config.json").write_text("{}", "utf-8"), "has no 'contract'"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(saved, damage, words):
    folder = saved[2]
    damage(folder)
    with pytest.raises(DataError, match=words) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_a_contract_with_other_labels_is_refused(saved):
    folder = saved[2]
    record = checkpoint.read_config(folder)
    record["contract"]["labels"].reverse()
    _edit(**record)(folder)
    with pytest.raises(DataError, match="labels of the model and of the contract differ"):
        load_checkpoint(folder)


def test_weights_of_another_size_are_refused(saved, tiny_config):
    folder = saved[2]
    _edit(model=tiny_config("test_resnet", width=16).to_json())(folder)
    with pytest.raises(DataError, match=r"does not fit the model.*another configuration"):
        load_checkpoint(folder)


def test_a_full_disk_leaves_the_earlier_checkpoint(saved, monkeypatch, images):
    model, contract, folder = saved
    before = model(images)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with torch.no_grad():
        model.head.linear.bias.add_(1)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match="No space left"):
        save_checkpoint(folder, model, contract)
    assert torch.equal(load_checkpoint(folder)[0](images), before)
    assert len(list(folder.iterdir())) == 2


def test_the_file_that_is_synced_is_the_one_that_is_kept(saved, monkeypatch):
    """Safetensors renames a file of its own over the one it is given; only the last one's bytes matter."""
    model, contract, folder = saved
    synced, fsync = set(), checkpoint.os.fsync

    def record(handle):
        synced.add(checkpoint.os.fstat(handle).st_ino)
        fsync(handle)

    monkeypatch.setattr(checkpoint.os, "fsync", record)
    save_checkpoint(folder, model, contract)
    assert {path.stat().st_ino for path in folder.iterdir()} <= synced


def test_a_full_disk_names_the_file_that_did_not_fit(saved, monkeypatch):
    model, contract, folder = saved

    def full(*_):
        raise checkpoint.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(DataError, match=r"cannot write .*model\.safetensors: No space left on device; free some space"):
        save_checkpoint(folder, model, contract)
