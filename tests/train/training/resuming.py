"""A run that is stopped and goes on, compared with one that was not."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest
import torch

from mineral_train.training.checkpoint import load_state
from mineral_train.training.fit import fit
from mineral_train.training.run_folder import STATE

if TYPE_CHECKING:
    from pathlib import Path

    from mineral_train.training.config import RunOptions, TrainConfig


def assert_same_bits_after_stops(config: TrainConfig, manifest: Path, folder: Path, options: RunOptions) -> None:
    """Stopped after each of its first two epochs, a run ends with the weights and the state of a whole one."""

    def stop(_: object) -> NoReturn:
        raise KeyboardInterrupt

    fit(config, manifest, folder / "whole", options)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(config, manifest, folder / "parts", options, on_epoch=stop)
    fit(config, manifest, folder / "parts", options)
    whole, parts = (load_state(folder / name / STATE)[0] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
