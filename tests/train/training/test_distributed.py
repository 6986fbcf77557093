"""Several processes do what one does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mineral_batch.errors import MineralError
from mineral_train.training.checkpoint import load_state
from mineral_train.training.distributed import choose_device, plan_epoch, share_batch_norm
from mineral_train.training.run_folder import STATE


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(1, 4))
def test_every_image_counts_once_and_alike(count, batch, accumulate, world):
    order = list(range(count))
    plans = [plan_epoch(order, batch=batch, accumulate=accumulate, rank=rank, world=world) for rank in range(world)]
    assert len({len(plan) for plan in plans}) == 1
    for number, shares in enumerate(zip(*plans, strict=True)):
        assert all(pieces and all(piece.indices for piece in pieces) for pieces in shares)
        expected = order[number * batch : (number + 1) * batch]
        share_of = {
            index: piece.weight / len(piece.indices) / world
            for pieces in shares
            for piece in pieces
            if piece.weight > 0
            for index in piece.indices
        }
        assert sorted(share_of) == expected
        assert all(share == pytest.approx(1 / len(expected)) for share in share_of.values())


_COMMAND = [
    "-m", "mineral_train", "fit", "--backbone", "test_vit", "--image-size", "64", "--width", "32", "--ffn", "48",
    "--dropout", "0", "--no-pretrained", "--epochs", "2", "--batch", "5", "--freeze-epochs", "1", "--lr", "1e-9",
    "--ema", "0.5", "--set", "mixup=0", "--workers", "0", "--quiet", "--device", "cpu",
]  # fmt: skip


def test_two_processes_equal_one(colored_manifest, tmp_path):
    """16 images in batches of 5: shares are uneven, and in the last batch one process has no image at all.

    Without mixup, whose pairs are found within a process.
    """
    labels = tmp_path / "labels.txt"
    labels.write_text("agate\ngold\npyrite\nquartz\n", encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    runs = {"one": [], "two": [*torchrun]}
    for name, launcher in runs.items():
        arguments = [*launcher, *_COMMAND, str(colored_manifest), "-o", str(tmp_path / name), "--labels", str(labels)]
        done = subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Epoch 2/2") == 1
    (one, its_record), (two, other_record) = (load_state(tmp_path / name / STATE) for name in runs)
    assert one.keys() == two.keys()
    # At this learning rate the weights stand still, and Adam's first moment is a mean of the steps' gradients.
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    for mine, theirs in zip(its_record["progress"]["history"], other_record["progress"]["history"], strict=True):
        for key in ("lr", "train_loss", "val_loss", "val_map"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-5)


def test_shared_batch_norm_keeps_activations_and_weights(tiny_model, images):
    model = tiny_model("test_efficientnet").eval()
    before = model(images), dict(model.named_parameters())
    share_batch_norm(model)
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    assert all(parameter is before[1][name] for name, parameter in model.named_parameters())
    assert torch.equal(model(images), before[0])


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x"])
def test_an_unknown_device_is_one_line(name):
    with pytest.raises(MineralError, match=name) as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said_and_auto_takes_the_cpu():
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(MineralError, match="--device cpu"):
        choose_device("cuda")
