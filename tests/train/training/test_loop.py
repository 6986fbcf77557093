"""Training: what is learned, what is kept, and that a run may stop anywhere."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_train.data.dataset import PhotoDataset
from mineral_train.data.manifest import read_manifest
from mineral_train.model.network import build_model
from mineral_train.model.presets import ModelConfig
from mineral_train.training import optim
from mineral_train.training.checkpoint import load_checkpoint, load_state
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.evaluate import evaluate_model
from mineral_train.training.fit import fit
from mineral_train.training.learner import Learner, positive_weights
from mineral_train.training.run_folder import STATE

HERE = RunOptions(device="cpu", workers=0, quiet=True)


@pytest.fixture
def recipe(tiny_config):
    """A recipe without pretrained weights: `recipe(backbone, **changes)`."""

    def make(backbone="test_vit", **changes):
        values = {"pretrained": "none", "epochs": 2, "batch": 8, "lr": 1e-3} | changes
        return TrainConfig(tiny_config(backbone), **values)

    return make


def _everything(recipe, backbone):
    """A recipe with every mechanism that has a state."""
    return recipe(
        backbone, epochs=3, batch=5, ema=0.9, schedule="cosine", warmup_epochs=1.0, clip=1.0, accumulate=2,
        freeze_epochs=1, layer_decay=0.9, head_lr=2.0, crop=0.5, positive_weight="sqrt-inverse",
    )  # fmt: skip


class _StopError(Exception):
    """Stands for whatever ends a process."""


def _stop_after(epoch):
    def stop(record):
        if record.epoch == epoch:
            raise _StopError

    return stop


def _same_state(run, other):
    """All tensors of two runs' states are equal, bit for bit, and so is what they logged but for time and memory."""
    (tensors, record), (others, its_record) = load_state(run / STATE), load_state(other / STATE)
    assert tensors.keys() == others.keys()
    differing = [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])]
    assert differing == []
    for progress in (record["progress"], its_record["progress"]):
        for epoch in progress["history"]:
            del epoch["seconds"], epoch["peak_memory_mib"]
    assert record == its_record
    return tensors


@pytest.mark.parametrize("backbone", ["test_vit", "test_efficientnet"])
def test_a_run_stopped_between_epochs_ends_with_the_same_bits(recipe, colored_manifest, tmp_path, backbone):
    config = _everything(recipe, backbone)
    whole = fit(config, colored_manifest, tmp_path / "whole", HERE)
    for epoch in (1, 2):
        with pytest.raises(_StopError):
            fit(config, colored_manifest, tmp_path / "parts", HERE, on_epoch=_stop_after(epoch))
    parts = fit(config, colored_manifest, tmp_path / "parts", HERE)
    tensors = _same_state(tmp_path / "whole", tmp_path / "parts")
    assert {name.split("/")[0] for name in tensors} == {"model", "optimizer", "ema"}
    assert replace(parts, peak_memory_mib=0) == replace(whole, peak_memory_mib=0)
    best = [load_checkpoint(tmp_path / run)[0].state_dict() for run in ("whole", "parts")]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])


def test_a_run_stopped_within_an_epoch_ends_with_the_same_bits(recipe, colored_manifest, tmp_path, monkeypatch):
    config = _everything(recipe, "test_efficientnet")
    fit(config, colored_manifest, tmp_path / "whole", HERE)
    step, seen = Learner.step, []

    def fails_at_the_seventh(self, *args, **options):
        seen.append(1)
        if len(seen) == 7:
            raise _StopError
        return step(self, *args, **options)

    monkeypatch.setattr(Learner, "step", fails_at_the_seventh)
    options = replace(HERE, save_every=2)
    with pytest.raises(_StopError):
        fit(config, colored_manifest, tmp_path / "parts", options)
    assert load_state(tmp_path / "parts" / STATE)[1]["progress"]["step"] == 2
    fit(config, colored_manifest, tmp_path / "parts", options)
    _same_state(tmp_path / "whole", tmp_path / "parts")


def test_the_number_of_workers_changes_nothing(recipe, colored_manifest, tmp_path):
    for workers in (0, 2):
        fit(recipe(epochs=1), colored_manifest, tmp_path / str(workers), replace(HERE, workers=workers))
    _same_state(tmp_path / "0", tmp_path / "2")


def test_it_learns_and_keeps_the_best_epoch(recipe, colored_manifest, tmp_path):
    config = recipe("test_efficientnet", epochs=6, lr=3e-3, augment="", patience=5)
    result = fit(config, colored_manifest, tmp_path, HERE)
    with (tmp_path / "log.csv").open(encoding="utf-8") as file:
        log = list(csv.DictReader(file))
    maps = [float(row["val_map_equation_6"]) for row in log]
    assert float(log[-1]["train_loss"]) < 0.6 * float(log[0]["train_loss"])
    assert result.best_map == max(maps) > 0.9
    assert result.best_epoch == maps.index(max(maps)) + 1


@pytest.mark.parametrize(("ema", "weights"), [(0.0, "as trained"), (0.9, "moving average")])
def test_the_contract_says_what_the_checkpoint_does(recipe, colored_manifest, tmp_path, ema, weights):
    config = recipe("test_efficientnet", ema=ema, lr=1e-2, tune_thresholds=True)
    result = fit(config, colored_manifest, tmp_path / "run", HERE)
    model, contract = load_checkpoint(tmp_path / "run")
    manifest = read_manifest(colored_manifest, config.model.labels)
    dataset = PhotoDataset(manifest.select("val"), manifest.labels, contract.input)
    scores, truth = evaluate_model(model, dataset, batch=3)
    assert scores.shape == truth.shape == (12, 4)
    assert scores.dtype == np.float32
    assert (truth == manifest.targets("val")).all()
    assert mean_average_precision(scores, truth).mean == pytest.approx(result.best_map, abs=1e-12)
    assert contract.measured is not None
    assert contract.measured.mean_ap == result.best_map
    assert contract.measured.ap["quartz"] is None
    assert contract.thresholds[3] == 0.5
    assert contract.thresholds != (0.5,) * 4
    assert contract.provenance["weights"] == weights
    assert contract.provenance["images"] == {"train": 16, "val": 12}


@pytest.mark.parametrize(("augment", "vary"), [("", False), ("rand-m9-mstd0.5", True)])
def test_images_vary_from_epoch_to_epoch(recipe, colored_manifest, tmp_path, augment, vary):
    config = recipe(augment=augment, flip=0.0, lr=1e-12)
    config = replace(config, model=replace(config.model, dropout=0.0))
    fit(config, colored_manifest, tmp_path, HERE)
    history = load_state(tmp_path / STATE)[1]["progress"]["history"]
    # The weights stand still, so only other images can make another loss.
    assert (history[0]["train_loss"] != pytest.approx(history[1]["train_loss"], rel=1e-5)) == vary


def test_the_moving_average_lags_behind_the_weights(recipe, colored_manifest, tmp_path):
    fit(recipe(ema=0.99), colored_manifest, tmp_path, HERE)
    tensors, _ = load_state(tmp_path / STATE)
    start = build_model(recipe().model, seed=0).state_dict()
    name = "head.linear.weight"
    moved = (tensors[f"model/{name}"] - start[name]).norm()
    lagging = (tensors[f"ema/{name}"] - start[name]).norm()
    assert 0 < lagging < moved


def test_a_frozen_backbone_stands_still_with_its_statistics(recipe, colored_manifest, tmp_path):
    start = build_model(recipe("test_efficientnet").model, seed=0).state_dict()
    config = recipe("test_efficientnet", freeze_epochs=1)
    with pytest.raises(_StopError):
        fit(config, colored_manifest, tmp_path, HERE, on_epoch=_stop_after(1))
    frozen, _ = load_state(tmp_path / STATE)
    moved = {name for name, tensor in start.items() if not torch.equal(frozen[f"model/{name}"], tensor)}
    assert moved
    assert not any(name.startswith("backbone.") for name in moved)
    fit(config, colored_manifest, tmp_path, HERE)
    free, _ = load_state(tmp_path / STATE)
    for name in ("backbone.conv_stem.weight", "backbone.bn1.running_mean"):
        assert not torch.equal(free[f"model/{name}"], start[name])


def test_frozen_stages_stand_still_and_the_others_learn(recipe, colored_manifest, tmp_path):
    start = build_model(recipe("test_efficientnet").model, seed=0).state_dict()
    fit(recipe("test_efficientnet", freeze_stages=2), colored_manifest, tmp_path, HERE)
    tensors, _ = load_state(tmp_path / STATE)
    moved = [name for name, tensor in start.items() if not torch.equal(tensors[f"model/{name}"], tensor)]
    stages = {name.split(".")[2] for name in moved if name.startswith("backbone.blocks.")}
    assert stages
    assert not stages & {"0", "1"}
    assert not any(name.startswith(("backbone.conv_stem", "backbone.bn1")) for name in moved)
    with pytest.raises(MineralError, match="freezes all"):
        fit(recipe("test_efficientnet", freeze_stages=99), colored_manifest, tmp_path / "other", HERE)


def test_pieces_add_up_to_the_gradient_of_the_whole_batch(recipe, colored_manifest, tmp_path):
    """16 images in batches of 5: the last has one image, and pieces are uneven."""
    moments = []
    for accumulate in (1, 3):
        config = recipe(epochs=1, batch=5, accumulate=accumulate, lr=1e-9)
        config = replace(config, model=replace(config.model, dropout=0.0))
        fit(config, colored_manifest, tmp_path / str(accumulate), HERE)
        moments.append(load_state(tmp_path / str(accumulate) / STATE)[0])
    # At this learning rate the weights stand still, and Adam's first moment is a mean of the steps' gradients.
    names = [name for name in moments[0] if name.endswith("/exp_avg")]
    assert names
    for name in names:
        torch.testing.assert_close(moments[0][name], moments[1][name], rtol=1e-4, atol=1e-6)


def test_it_stops_early_without_progress(recipe, colored_manifest, tmp_path):
    result = fit(recipe(epochs=9, patience=2, lr=1e-12), colored_manifest, tmp_path, HERE)
    assert (result.epochs, result.best_epoch) == (3, 1)
    assert result.reason == "no better validation mAP for 2 epochs"


def test_a_finished_run_gives_its_result_again(recipe, colored_manifest, tmp_path, monkeypatch):
    result = fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    monkeypatch.setattr(Learner, "step", lambda *_, **__: pytest.fail("trained again"))
    assert fit(recipe(epochs=1), colored_manifest, tmp_path, HERE) == result


def test_another_recipe_or_other_data_are_refused(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path / "run", HERE)
    before = (tmp_path / "run" / STATE).read_bytes()
    config = recipe(epochs=1, lr=2e-3)
    config = replace(config, model=replace(config.model, width=16))
    with pytest.raises(MineralError, match=r"model.width: 32 -> 16; lr: 0.001 -> 0.002") as caught:
        fit(config, colored_manifest, tmp_path / "run", HERE)
    assert "\n" not in str(caught.value)
    shutil.copytree(colored_manifest.parent, tmp_path / "data")
    other = tmp_path / "data" / colored_manifest.name
    other.write_text(other.read_text("utf-8").replace("test", "train"), "utf-8")
    with pytest.raises(MineralError, match="the manifest's content"):
        fit(recipe(epochs=1), other, tmp_path / "run", HERE)
    assert (tmp_path / "run" / STATE).read_bytes() == before


def test_restart_begins_again_and_spares_other_files(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path, HERE)
    (tmp_path / "notes.txt").write_text("mine", "utf-8")
    fit(recipe(epochs=1, lr=2e-3), colored_manifest, tmp_path, replace(HERE, restart=True))
    assert (tmp_path / "notes.txt").exists()
    shutil.rmtree(tmp_path / "last")
    with pytest.raises(DataError, match="--restart"):
        fit(recipe(epochs=1, lr=2e-3), colored_manifest, tmp_path, HERE)


def test_it_begins_with_the_weights_of_another_run(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path / "a", HERE)
    config = recipe(epochs=1, lr=1e-12, init=str(tmp_path / "a"))
    fit(config, colored_manifest, tmp_path / "b", HERE)
    states = [load_checkpoint(tmp_path / run)[0].state_dict() for run in "ab"]
    # The head of each is calibrated when its run ends.
    for name in [name for name in states[0] if not name.startswith("head.")]:
        torch.testing.assert_close(states[1][name], states[0][name], rtol=0, atol=1e-6)
    other = replace(config, model=replace(config.model, labels=("gold", "agate", "pyrite", "quartz")))
    with pytest.raises(DataError, match="or in another order"):
        fit(other, colored_manifest, tmp_path / "c", HERE)


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(recipe, colored_manifest, tmp_path):
    with pytest.raises(MineralError, match="not finite in epoch 1") as caught:
        fit(recipe(lr=1e30), colored_manifest, tmp_path, HERE)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / STATE).exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_undecodable_image_is_named_in_one_line(recipe, colored_manifest, tmp_path, workers):
    shutil.copytree(colored_manifest.parent, tmp_path / "data")
    (tmp_path / "data" / "5.png").write_bytes(b"not an image")
    manifest = tmp_path / "data" / colored_manifest.name
    with pytest.raises(DataError, match=r"5\.png") as caught:
        fit(recipe(), manifest, tmp_path / "run", replace(HERE, workers=workers))
    assert "\n" not in str(caught.value)
    assert "Error" not in str(caught.value)


def test_a_split_without_labels_is_refused(recipe, colored_manifest, tmp_path):
    shutil.copytree(colored_manifest.parent, tmp_path / "data")
    manifest = tmp_path / "data" / colored_manifest.name
    manifest.write_text(manifest.read_text("utf-8").replace("val", "test"), "utf-8")
    with pytest.raises(DataError, match="no image of the split 'val'"):
        fit(recipe(), manifest, tmp_path / "run", HERE)


def test_bfloat16_trains(recipe, colored_manifest, tmp_path):
    fit(recipe(epochs=1), colored_manifest, tmp_path / "fp32", HERE)
    fit(recipe(epochs=1, precision="bf16"), colored_manifest, tmp_path / "bf16", HERE)
    losses = [load_state(tmp_path / run / STATE)[1]["progress"]["history"][0]["train_loss"] for run in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_tensorboard_logs_name_the_definition(recipe, colored_manifest, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fit(recipe(epochs=2), colored_manifest, tmp_path, replace(HERE, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("val/mAP equation-6")]
    assert len(logged) == 2
    assert max(logged) == pytest.approx(result.best_map)


def test_half_precision_on_a_cpu_is_refused(recipe, colored_manifest, tmp_path):
    with pytest.raises(MineralError, match="needs a GPU"):
        fit(recipe(precision="fp16"), colored_manifest, tmp_path, HERE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "hinge"}, "asymmetric, focal, bce"),
        ({"epochs": 0}, "at least 1"),
        ({"lr": 0.0}, "above 0"),
        ({"ema": 1.0}, "below 1"),
        ({"warmup_epochs": 5.0, "epochs": 5}, "must be below"),
    ],
)
def test_a_recipe_checks_itself(changes, words):
    with pytest.raises(MineralError, match=words):
        TrainConfig(ModelConfig(), **changes)


def test_a_recipe_comes_back_from_json():
    config = TrainConfig(ModelConfig(image_size=224), lr=3e-4, ema=0.99)
    assert TrainConfig.from_json(config.to_json()) == config
    assert config.differences(config.to_json()) == []
    with pytest.raises(DataError, match="momentum"):
        TrainConfig.from_json(config.to_json() | {"momentum": 0.9})


def test_the_defaults_are_the_papers():
    config = TrainConfig(ModelConfig())
    assert (config.lr, config.batch, config.epochs, config.loss) == (1e-5, 16, 50, "asymmetric")
    assert config.model.image_size == 384
    assert config.augmentation is not None
    assert config.augmentation.policy.startswith("rand-")


def test_vectors_and_embeddings_do_not_decay(recipe, tiny_model):
    model = tiny_model()
    optimizer = optim.make_optimizer(model, recipe(weight_decay=0.1, head_lr=5.0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    group_of = {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}
    assert group_of.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name in ("decoder.labels", "backbone.pos_embed", "backbone.norm.weight", "head.linear.bias"):
        assert group_of[name]["weight_decay"] == 0
    for name in ("head.linear.weight", "projection.convolution.weight", "backbone.blocks.0.attn.qkv.weight"):
        assert group_of[name]["weight_decay"] == 0.1
    assert group_of["head.linear.weight"]["lr_scale"] == 5
    assert group_of["backbone.pos_embed"]["lr_scale"] == 1


def test_lower_layers_learn_slower(recipe, tiny_model):
    model = tiny_model()
    optimizer = optim.make_optimizer(model, recipe(layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    scales = [scale[id(block.attn.qkv.weight)] for block in model.backbone.blocks]
    assert all(upper == pytest.approx(2 * lower) for lower, upper in pairwise(scales))
    assert scale[id(model.backbone.pos_embed)] < scales[0]
    assert scale[id(model.decoder.labels)] == 1


@given(st.integers(1, 40), st.integers(1, 30), st.floats(0, 0.9), st.floats(0, 1))
def test_the_learning_rate_rises_then_falls_to_its_end(epochs, steps, warmup, min_lr):
    config = TrainConfig(ModelConfig(), epochs=epochs, warmup_epochs=warmup * epochs, schedule="cosine", min_lr=min_lr)
    factors = [optim.lr_factor(config, step, steps) for step in range(epochs * steps + 1)]
    top = round(config.warmup_epochs * steps)
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors[:-1])
    assert factors[-1] == pytest.approx(min_lr if top < epochs * steps else 1.0)


def test_rare_labels_weigh_more():
    targets = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.float32)
    torch.testing.assert_close(positive_weights(targets), torch.tensor([0.5, 2.0, 1.0]))
