"""`--best`: which epoch a run keeps, and what its patience waits for."""

from __future__ import annotations

import pytest

from mineral_train.training.config import TrainConfig
from mineral_train.training.logs import EpochRecord
from mineral_train.training.run_folder import Progress

LOSSES = (3.0, 2.0, 1.0, 1.5)
MAPS = (0.4, 0.6, 0.5, 0.6)


def _run(config: TrainConfig) -> Progress:
    progress = Progress()
    for number, (loss, mean_ap) in enumerate(zip(LOSSES, MAPS, strict=True), start=1):
        if progress.reason:
            break
        progress.add(EpochRecord(number, 1e-3, 9.0, loss, mean_ap, 1.0, 1.0), config)
    return progress


@pytest.mark.parametrize(("best", "epoch", "mean_ap"), [("map", 2, 0.6), ("loss", 3, 0.5)])
def test_the_kept_epoch_is_the_first_best_by_what_was_asked(tiny_config, best, epoch, mean_ap):
    progress = _run(TrainConfig(tiny_config(), epochs=4, best=best))
    assert (progress.best_epoch, progress.best_map) == (epoch, mean_ap)
    assert progress.reason == "all 4 epochs are done"


@pytest.mark.parametrize(("best", "last", "name"), [("map", 3, "mAP"), ("loss", 4, "loss")])
def test_patience_waits_for_the_same(tiny_config, best, last, name):
    progress = _run(TrainConfig(tiny_config(), epochs=9, best=best, patience=1))
    assert progress.epoch == last
    assert progress.reason == f"no better validation {name} for 1 epochs"
