"""One run at a time, nothing half written, and a run whose files were damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mineral_batch.errors import DataError, MineralError
from mineral_train.training.checkpoint import load_checkpoint, load_state, save_state
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit
from mineral_train.training.run_folder import LOCK, STATE, RunFolder

HERE = RunOptions(device="cpu", workers=0, quiet=True)


@pytest.fixture
def recipe(tiny_config):
    def make(backbone="test_vit", **changes):
        return TrainConfig(
            tiny_config(backbone), **{"pretrained": "none", "epochs": 2, "batch": 8, "lr": 1e-3} | changes
        )

    return make


def test_two_runs_into_one_folder_are_refused(recipe, colored_manifest, tmp_path):
    holder = "import sys, time; from mineral_train.training.run_folder import _lock; from pathlib import Path\n"
    holder += "file = _lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    (tmp_path / "run").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "run" / LOCK)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(MineralError, match="another `mineral-train fit` writes to"):
            fit(recipe(epochs=1), colored_manifest, tmp_path / "run", HERE)
        process.stdin.close()
    fit(recipe(epochs=1), colored_manifest, tmp_path / "run", HERE)
    assert not (tmp_path / "run" / LOCK).exists()


def test_what_killed_writes_left_is_removed(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    left = [tmp_path / "last" / ".state.safetensors.0123abcd.part", tmp_path / ".checkpoint.0123abcd.part"]
    for folder in left:
        folder.mkdir()
        (folder / ".tmpXYZ").write_bytes(b"half")
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert names == {"model.safetensors", "config.json", "log.csv", "last", "last/state.safetensors"}


def _damage(run):
    (run / "model.safetensors").write_bytes(b"")


def test_a_damaged_checkpoint_of_the_last_epoch_is_written_again(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    before = load_checkpoint(tmp_path)[0].state_dict()
    _damage(tmp_path)
    lines = []
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE, say=lines.append)
    assert any("is damaged; it is written again" in line for line in lines)
    after = load_checkpoint(tmp_path)[0].state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_finished_run_whose_best_weights_are_lost_is_an_error(recipe, colored_manifest, tmp_path):
    result = fit(recipe(epochs=9, patience=2, lr=1e-12), colored_manifest, tmp_path, HERE)
    assert result.best_epoch < result.epochs
    _damage(tmp_path)
    with pytest.raises(DataError, match=r"checkpoint of epoch 1 is damaged.*--restart") as caught:
        fit(recipe(epochs=9, patience=2, lr=1e-12), colored_manifest, tmp_path, HERE)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_goes_on_without_its_damaged_checkpoint(recipe, colored_manifest, tmp_path):
    class Stop(Exception):
        pass

    def stop(record):
        if record.epoch == 2:
            raise Stop

    config = recipe(epochs=3, lr=1e-12)
    with pytest.raises(Stop):
        fit(config, colored_manifest, tmp_path, HERE, on_epoch=stop)
    _damage(tmp_path)
    lines = []
    result = fit(config, colored_manifest, tmp_path, HERE, say=lines.append)
    assert any("the best of the remaining epochs" in line for line in lines)
    assert result.best_epoch == 3
    load_checkpoint(tmp_path)


def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path):
    save_state(tmp_path / "s.safetensors", {"a": torch.ones(2)}, {})
    with pytest.raises(DataError, match="b and 0 more tensors have values that are not finite"):
        save_state(tmp_path / "s.safetensors", {"a": torch.ones(2), "b": torch.tensor([float("nan")])}, {})
    assert torch.equal(load_state(tmp_path / "s.safetensors")[0]["a"], torch.ones(2))


def test_nan_in_mid_epoch_leaves_the_last_good_state(recipe, colored_manifest, tmp_path, monkeypatch):
    from mineral_train.training.learner import Learner

    step = Learner.step

    def poisoned(self, pieces, batches, number, lr, **options):
        loss = step(self, pieces, batches, number, lr, **options)
        return loss * float("nan") if number == 3 else loss

    monkeypatch.setattr(Learner, "step", poisoned)
    with pytest.raises(MineralError, match=r"not finite in epoch 1, step 4 of 4: start again .* lower --lr") as caught:
        fit(recipe(batch=4), colored_manifest, tmp_path, replace(HERE, save_every=1))
    assert "\n" not in str(caught.value)
    tensors, record = load_state(tmp_path / STATE)
    assert record["progress"]["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_nan_at_validation_names_epoch_and_advice(recipe, colored_manifest, tmp_path, monkeypatch):
    from mineral_train.training import loop

    monkeypatch.setattr(loop, "predict_logits", lambda *_, **__: torch.full((12, 4), float("nan")))
    with pytest.raises(MineralError, match=r"validation split is not finite in epoch 1.*--lr"):
        fit(recipe(), colored_manifest, tmp_path, HERE)


def test_a_photograph_damaged_during_the_run_costs_no_epoch(recipe, colored_manifest, tmp_path):
    shutil.copytree(colored_manifest.parent, tmp_path / "data")
    manifest = tmp_path / "data" / colored_manifest.name

    def damage(record):
        (tmp_path / "data" / "5.png").write_bytes(b"not an image")

    config = recipe(epochs=3)
    with pytest.raises(DataError, match=r"5\.png.*--skip-damaged"):
        fit(config, manifest, tmp_path / "run", HERE, on_epoch=damage)
    assert load_state(tmp_path / "run" / STATE)[1]["progress"]["epoch"] == 1
    lines = []
    result = fit(config, manifest, tmp_path / "run", replace(HERE, skip_damaged=True), say=lines.append)
    assert result.epochs == 3
    assert any("Skipped in train:" in line and "5.png" in line for line in lines)


def test_validation_photographs_are_decoded_before_the_first_epoch(recipe, colored_manifest, tmp_path):
    shutil.copytree(colored_manifest.parent, tmp_path / "data")
    manifest = tmp_path / "data" / colored_manifest.name
    for number in (17, 18):
        (tmp_path / "data" / f"{number}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"2 faults: .*17\.png.*18\.png"):
        fit(recipe(), manifest, tmp_path / "run", HERE)
    assert not (tmp_path / "run").exists()
    assert fit(recipe(epochs=1), manifest, tmp_path / "run", replace(HERE, skip_damaged=True)).epochs == 1
    assert load_checkpoint(tmp_path / "run")[1].provenance["images"]["val"] == 10


def test_a_folder_that_cannot_be_written_is_one_line(recipe, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"), RunFolder(tmp_path / "file" / "run", recipe(), "").locked():
        pass


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_files_have_the_mode_of_the_umask(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert {p.stat().st_mode for p in (tmp_path / "model.safetensors", tmp_path / STATE)} == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("place", [3, 18])
def test_a_worker_that_is_killed_is_one_line_and_the_run_goes_on(
    recipe, colored_manifest, tmp_path, monkeypatch, place
):
    """By the system, for want of memory, say; in training and in validation (the 16th image and later)."""
    from mineral_train.data.dataset import PhotoDataset

    whole = fit(recipe(), colored_manifest, tmp_path / "whole", HERE)
    plain = PhotoDataset._decoded

    def killed(self, index):
        return os._exit(9) if self.paths[index].name == f"{place}.png" else plain(self, index)

    monkeypatch.setattr(PhotoDataset, "_decoded", killed)
    with pytest.raises(DataError, match="--workers 0, goes on"):
        fit(recipe(), colored_manifest, tmp_path / "run", replace(HERE, workers=1))
    assert (tmp_path / "run" / STATE).exists()
    monkeypatch.setattr(PhotoDataset, "_decoded", plain)
    again = fit(recipe(), colored_manifest, tmp_path / "run", HERE)
    assert (again.best_epoch, again.best_map) == (whole.best_epoch, whole.best_map)
