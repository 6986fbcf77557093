"""A batch, or a piece of one, that holds a single image."""

from __future__ import annotations

import pytest

from mineral_batch.errors import MineralError
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.fit import fit

HERE = RunOptions(device="cpu", workers=0, quiet=True)


@pytest.mark.parametrize("changes", [{"batch": 5}, {"batch": 5, "accumulate": 3}, {"batch": 15}])
def test_a_last_batch_of_one_trains_with_batch_norm(tiny_config, colored_manifest, tmp_path, changes):
    """16 images; the feature map of the last BatchNorm has one place, where torch refuses a batch of one."""
    model = tiny_config("test_efficientnet", image_size=32)
    config = TrainConfig(model, pretrained="none", epochs=1, lr=1e-3, **changes)
    assert fit(config, colored_manifest, tmp_path, HERE).epochs == 1


def test_batches_of_one_are_refused_where_batch_norm_learns(tiny_config, colored_manifest, tmp_path):
    config = TrainConfig(tiny_config("test_efficientnet"), pretrained="none", epochs=1, batch=1)
    with pytest.raises(MineralError, match=r"too few for BatchNorm: use a larger --batch"):
        fit(config, colored_manifest, tmp_path / "a", HERE)
    config = TrainConfig(tiny_config("test_efficientnet"), pretrained="none", epochs=1, batch=1, freeze_norm=True)
    assert fit(config, colored_manifest, tmp_path / "b", HERE).epochs == 1
    config = TrainConfig(tiny_config("test_vit"), pretrained="none", epochs=1, batch=1)
    assert fit(config, colored_manifest, tmp_path / "c", HERE).epochs == 1
