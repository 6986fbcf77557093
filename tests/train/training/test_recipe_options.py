"""Settings that small sets profit from: sampling, mixup, jitter, a smaller training size, soft targets, averaging."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mineral_batch.errors import DataError, MineralError
from mineral_train.cli import main
from mineral_train.data.augment import Augment, vary
from mineral_train.data.dataset import PhotoDataset
from mineral_train.data.manifest import read_manifest
from mineral_train.training import learner, mixing, sets
from mineral_train.training.average import average
from mineral_train.training.checkpoint import load_checkpoint, save_checkpoint
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.data import TrainingManifest, soften
from mineral_train.training.fit import fit
from mineral_train.training.sampling import Sampler, repeat_factors

from .resuming import assert_same_bits_after_stops

HERE = RunOptions(device="cpu", workers=0, quiet=True)


@pytest.fixture
def recipe(tiny_config):
    """A recipe of a tiny CNN that pools, without pretrained weights."""

    def make(**changes):
        values = {"pretrained": "none", "epochs": 2, "batch": 8, "lr": 1e-3, "augment": ""} | changes
        return TrainConfig(tiny_config("test_efficientnet", method="pool"), **values)

    return make


# -- sampling ------------------------------------------------------------------------------------------------------


def _truth():
    """100 images: 50 show the first label, 4 the second, one of them both; 1 shows the third."""
    truth = np.zeros((100, 3), bool)
    truth[:50, 0] = truth[49:53, 1] = truth[99, 2] = True
    return truth


def test_repeat_factors_by_hand():
    factors = repeat_factors(_truth(), 0.16)
    assert factors[0] == factors[60] == 1  # a common label, none
    assert factors[[49, 50]] == pytest.approx(2)  # sqrt(0.16 / 0.04), also beside a common label
    assert factors[99] == pytest.approx(4)
    assert (repeat_factors(_truth(), 0.0) == 1).all()


def test_every_epoch_has_the_same_length_and_the_factors_on_average():
    sampler = Sampler(_truth(), 0.1, seed=1)
    counts = np.zeros(100)
    for epoch in range(1, 201):
        order = sampler.order(epoch)
        assert len(order) == len(set(order)) == sampler.draws
        drawn = np.bincount(np.array(order) % 100, minlength=100)
        assert (drawn >= 1).all()
        counts += drawn
    # Of 2.48 draws beside the whole ones an epoch has 2.
    np.testing.assert_allclose(counts / 200, sampler.factors, atol=0.2)


def test_without_it_an_epoch_is_a_permutation():
    sampler = Sampler(_truth(), 0.0, seed=3)
    assert sorted(sampler.order(1)) == list(range(100))
    assert sampler.order(1) == np.random.default_rng([3, 1]).permutation(100).tolist()


def test_an_image_that_is_drawn_twice_is_varied_twice(recipe, colored_manifest):
    rows = read_manifest(colored_manifest, ("agate", "gold", "pyrite", "quartz")).select("train")
    from mineral_train.model.network import input_spec

    spec = input_spec(recipe().model)
    dataset = PhotoDataset(rows, ("agate", "gold", "pyrite", "quartz"), spec, Augment("", 0.5, (0.5, 1.0)))
    once, again = dataset[2], dataset[2 + len(dataset)]
    assert once[2] == again[2] == 2
    assert torch.equal(once[1], again[1])
    assert not torch.equal(once[0], again[0])


def test_positive_weights_follow_what_is_drawn_and_have_a_limit(recipe):
    truth = torch.from_numpy(_truth()).float()
    factors = torch.from_numpy(repeat_factors(_truth(), 0.16)).float()
    plain, drawn = learner.positive_weights(truth), learner.positive_weights(truth, factors)
    assert plain[2] == pytest.approx(99**0.5)
    assert drawn[2] == pytest.approx(((float(factors.sum()) - 4) / 4) ** 0.5)
    config = recipe(positive_weight="sqrt-inverse", positive_cap=3.0)
    criterion = learner._criterion(config, truth, np.ones(100), torch.device("cpu"))
    assert criterion.positive.tolist() == pytest.approx([1.0, 24**0.5 if 24**0.5 < 3 else 3.0, 3.0])


# -- images --------------------------------------------------------------------------------------------------------


def test_jitter_keeps_the_hue():
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:10], pixels[10:] = (90, 60, 120), (60, 110, 80)
    from mineral_batch.model.contract import InputSpec

    changed = vary(pixels, Augment("", 0.0, None, 0.2), InputSpec(20, 20), np.random.default_rng(1))
    assert np.abs(changed.astype(int) - pixels).max() > 3
    for row in (0, 19):
        before, after = (colorsys.rgb_to_hsv(*(p[row, 0] / 255))[0] for p in (pixels, changed))
        assert after == pytest.approx(before, abs=0.02)


def test_mixup_blends_images_and_labels_alike():
    torch.manual_seed(0)
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 2, 2) * 50
    targets = torch.eye(4)
    blended, soft = mixing.mixed(pixels, targets, 1.0)
    assert not torch.equal(soft, targets)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(4))
    assert (soft.diagonal() >= 0.5).all()
    torch.testing.assert_close(blended[:, 0, 0, 0], soft @ (torch.arange(4.0) * 50))
    same, labels = mixing.mixed(pixels, targets, 0.0)
    assert same is pixels
    assert labels is targets


def test_cutmix_pastes_a_rectangle_and_its_share_of_the_labels():
    torch.manual_seed(1)
    pixels = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 20, 30).contiguous()
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    targets = torch.eye(4)
    pasted, soft = mixing.mixed(pixels, targets, 0.0, 1.0)
    assert pasted.dtype == torch.uint8
    assert pasted.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(pixels[:, 0, 0, 0], torch.arange(4, dtype=torch.uint8))  # the batch itself is as it was
    changed = 0
    for image, labels, number in zip(pasted[:, 0], soft, range(4), strict=True):
        shares = torch.bincount(image.flatten().long(), minlength=4) / image.numel()
        torch.testing.assert_close(labels, shares)
        assert labels[number] >= 0.5
        rows, columns = torch.nonzero(image != number, as_tuple=True)
        if len(rows):
            changed += 1
            assert len(rows) == (1 + rows.max() - rows.min()) * (1 + columns.max() - columns.min())
    assert changed


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0.0), (0.0, 0.5), (0.3, 0.4)])
def test_steps_are_mixed_as_often_as_the_recipe_says(mixup, cutmix):
    torch.manual_seed(2)
    pixels, targets = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.eye(2)
    outcomes = [mixing.mixed(pixels, targets, mixup, cutmix) for _ in range(400)]
    blended = sum(changed.dtype == torch.float32 for changed, _ in outcomes)
    pasted = sum(changed.dtype == torch.uint8 and changed is not pixels for changed, _ in outcomes)
    assert blended / 400 == pytest.approx(mixup, abs=0.07)
    assert pasted / 400 == pytest.approx(cutmix, abs=0.07)


def test_vertical_flip_turns_upside_down_and_leaves_other_draws_alone():
    from mineral_batch.model.contract import InputSpec

    pixels, spec = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8), InputSpec(9, 12)
    turned = vary(pixels, Augment("", 0.0, vertical_flip=1.0), spec, np.random.default_rng(1))
    assert np.array_equal(turned, pixels[::-1])
    both = vary(pixels, Augment("", 1.0, vertical_flip=1.0), spec, np.random.default_rng(1))
    assert np.array_equal(both, pixels[::-1, ::-1])
    halves = [vary(pixels, Augment("", 0.0, vertical_flip=0.5), spec, np.random.default_rng(k)) for k in range(60)]
    assert 15 < sum(np.array_equal(image, pixels) for image in halves) < 45
    with pytest.raises(DataError, match="vertical_flip is a probability"):
        Augment(vertical_flip=1.5)


def test_head_dropout_acts_in_training_only(tiny_model, images):
    model = tiny_model("test_efficientnet", method="pool", head_dropout=0.5)
    model.backbone.eval()
    with torch.no_grad():
        tokens = model.features(images)
        assert not torch.equal(model.classify(tokens), model.classify(tokens))
        model.eval()
        torch.testing.assert_close(model.classify(tokens), model.head(tokens.mean(dim=1)))
    assert set(model.state_dict()) == set(tiny_model("test_efficientnet", method="pool").state_dict())


def test_head_dropout_is_not_for_the_decoder(tiny_config):
    with pytest.raises(DataError, match=r"for methods pool and fusion; the decoder has model\.dropout"):
        tiny_config(head_dropout=0.1)


def test_mixup_and_cutmix_share_the_steps(recipe):
    with pytest.raises(MineralError, match="add up to at most 1"):
        recipe(mixup=0.6, cutmix=0.5)


def test_mixup_is_off_in_the_last_tenth(recipe, colored_manifest, tmp_path, monkeypatch):
    steps = []
    plain = learner.Learner.step

    def step(self, *arguments, mix):
        steps.append(mix)
        return plain(self, *arguments, mix=mix)

    monkeypatch.setattr(learner.Learner, "step", step)
    fit(recipe(mixup=0.5, epochs=5, batch=8), colored_manifest, tmp_path / "run", HERE)
    assert steps == [True] * 9 + [False]


def test_training_images_can_be_smaller_than_the_models(recipe, colored_manifest, tmp_path, monkeypatch):
    seen = []
    plain = learner.Learner._loss
    monkeypatch.setattr(learner.Learner, "_loss", lambda self, x, y: (seen.append(x.shape[-1]), plain(self, x, y))[1])
    fit(recipe(train_size=48, epochs=1), colored_manifest, tmp_path / "run", HERE)
    assert set(seen) == {48}
    assert load_checkpoint(tmp_path / "run")[1].input.height == 64


def test_sizes_that_cannot_be(recipe, tiny_config, colored_manifest, tmp_path):
    with pytest.raises(MineralError, match="train-size must be 32 to the image size"):
        recipe(train_size=512)
    with pytest.raises(MineralError, match="method pool only"):
        TrainConfig(tiny_config(), train_size=48)
    config = TrainConfig(tiny_config("test_vit", method="pool"), pretrained="none", train_size=48)
    with pytest.raises(DataError, match="images of one size only"):
        fit(config, colored_manifest, tmp_path / "run", HERE)


# -- a run with all of them ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_with_all_of_them_resumes_to_the_same_bits(recipe, colored_manifest, tmp_path):
    config = recipe(
        epochs=3, repeat=0.9, mixup=0.7, jitter=0.2, crop=0.5, train_size=48, positive_weight="sqrt-inverse",
        positive_cap=5.0, ema=0.9,
    )  # fmt: skip
    assert_same_bits_after_stops(config, colored_manifest, tmp_path, HERE)


def test_what_an_earlier_release_did_not_record_is_the_default(recipe):
    record = recipe().to_json()
    for name in ("repeat", "mixup", "jitter", "train_size", "soft_targets", "soft_weight", "positive_cap"):
        del record[name]
    assert recipe().differences(record) == []
    assert recipe(mixup=0.5).differences(record) == ["mixup: 0.0 -> 0.5"]


# -- soft targets --------------------------------------------------------------------------------------------------


@pytest.fixture
def train(colored_manifest, recipe):
    from mineral_train.model.network import input_spec

    labels = ("agate", "gold", "pyrite", "quartz")
    return PhotoDataset(read_manifest(colored_manifest, labels).select("train"), labels, input_spec(recipe().model))


def _teacher(path, rows):
    lines = ["path,minerals,quartz,agate,gold,pyrite", *rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_soft_targets_are_blended_by_path_and_label(train, tmp_path):
    table = _teacher(tmp_path / "p.csv", [f"{train.paths[1]},,0.5,0.25,1,0", "elsewhere.png,,0,0,0,0"])
    said = []
    targets = soften(train, ("agate", "gold", "pyrite", "quartz"), table, 0.4, said.append)
    assert torch.equal(targets[0], train.truth[0])
    expected = 0.6 * train.truth[1] + 0.4 * torch.tensor([0.25, 1, 0, 0.5])
    torch.testing.assert_close(targets[1], expected)
    assert said == ["Soft targets for 1 of 16 training images, weight 0.4"]


def test_soft_targets_that_fit_nothing_are_refused(train, tmp_path):
    labels = ("agate", "gold", "pyrite", "quartz")
    with pytest.raises(DataError, match="none of the 16 training images"):
        soften(train, labels, _teacher(tmp_path / "p.csv", ["elsewhere.jpg,,0,0,0,0"]), 0.4, print)
    (tmp_path / "q.csv").write_text("path,minerals,agate\n1.png,,0\n")
    with pytest.raises(DataError):
        soften(train, labels, tmp_path / "q.csv", 0.4, print)


@pytest.mark.slow
def test_other_soft_targets_are_another_run(recipe, colored_manifest, train, tmp_path):
    table = _teacher(tmp_path / "p.csv", [f"{path},,0,0,0,0" for path in train.paths])
    config = recipe(soft_targets=str(table), epochs=1)
    fit(config, colored_manifest, tmp_path / "run", HERE)
    _teacher(table, [f"{path},,1,0,0,0" for path in train.paths])
    with pytest.raises(MineralError, match="was begun differently"):
        fit(config, colored_manifest, tmp_path / "run", HERE)
    provenance = load_checkpoint(tmp_path / "run")[1].provenance
    assert provenance["recipe"]["soft_targets"] == "p.csv"


# -- several manifests ---------------------------------------------------------------------------------------------


def test_several_manifests_are_trained_on_together_and_measured_apart(recipe, colored_manifest, tmp_path):
    header, *lines = colored_manifest.read_text().splitlines()
    for folder, mine in (("a", lines[:8] + lines[16:22]), ("b", lines[8:16] + lines[22:])):
        (tmp_path / folder).mkdir()
        rows = [f"{colored_manifest.parent}/{line}" for line in mine]
        (tmp_path / folder / "m.csv").write_text("\n".join([header, *rows]) + "\n")
    said = []
    paths = [tmp_path / "a" / "m.csv", tmp_path / "b" / "m.csv"]
    fit(recipe(epochs=1), paths, tmp_path / "run", HERE, say=said.append)
    assert any(line.startswith("  a/m.csv: mAP") for line in said)
    contract = load_checkpoint(tmp_path / "run")[1]
    assert contract.provenance["images"] == {"train": 16, "val": 12}
    assert {name: found["images"] for name, found in contract.provenance["sets"].items()} == {
        "a/m.csv": 6,
        "b/m.csv": 6,
    }
    assert "a/m.csv + b/m.csv" in contract.measured.dataset
    with pytest.raises(MineralError, match="was begun differently"):
        fit(recipe(epochs=1), paths[:1], tmp_path / "run", HERE)
    with pytest.raises(DataError, match="named twice"):
        TrainingManifest.read([paths[0], tmp_path / "b" / ".." / "a" / "m.csv"], recipe().model.labels)


def test_a_set_without_labels_is_said():
    figures = sets.measure_sets(np.zeros((4, 2)), np.array([[1, 0], [0, 1], [0, 0], [0, 0]], bool), list("aabb"))
    assert list(sets.sets_in_words(figures))[1] == "  b: no label occurs, 2 images, 0 labels"
    assert sets.measure_sets(np.zeros((2, 2)), np.eye(2, dtype=bool), ["a", "a"]) == {}


# -- averaging -----------------------------------------------------------------------------------------------------


@pytest.fixture
def runs(recipe, colored_manifest, tmp_path):
    for seed in (0, 1):
        fit(recipe(seed=seed, epochs=1), colored_manifest, tmp_path / f"run{seed}", HERE)
    return [tmp_path / "run0", tmp_path / "run1"]


@pytest.mark.slow
def test_an_average_has_the_mean_of_the_weights(runs, colored_manifest, tmp_path):
    arguments = ["average", *map(str, runs), "-o", str(tmp_path / "mean")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    states = [load_checkpoint(folder)[0].state_dict() for folder in (*runs, tmp_path / "mean")]
    for name, tensor in states[2].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (states[0][name] + states[1][name]) / 2)
    contract = load_checkpoint(tmp_path / "mean")[1]
    assert contract.provenance["averaged"] == ["run0", "run1"]
    assert contract.calibration is None
    assert contract.measured is None
    calibrated = CliRunner().invoke(main, ["calibrate", str(tmp_path / "mean"), str(colored_manifest)])
    assert calibrated.exit_code == 0, calibrated.output
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "--force" in again.output


@pytest.mark.slow
def test_checkpoints_that_cannot_be_averaged(runs, tmp_path):
    model, contract = load_checkpoint(runs[0])
    model.config = replace(model.config, dropout=0.5)
    save_checkpoint(tmp_path / "other", model, contract)
    with pytest.raises(DataError, match="only checkpoints of one model"):
        average([runs[0], tmp_path / "other"], tmp_path / "mean")
    with pytest.raises(DataError, match="two checkpoints or more"):
        average(runs[:1], tmp_path / "mean")
    with pytest.raises(DataError, match="one of the checkpoints"):
        average(runs, runs[0])
    with pytest.raises(DataError, match="is not a checkpoint"):
        average([runs[0], tmp_path / "none"], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
