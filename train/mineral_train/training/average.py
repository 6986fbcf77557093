"""The mean of the weights of several checkpoints ("model soup", Wortsman et al. 2022).

Runs that began with the same weights end in one basin, where the mean of their weights is often better than each: in
the starter model it had the lowest log loss of all candidates (see its card).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mineral_batch.errors import DataError
from mineral_train.training.checkpoint import load_checkpoint, save_checkpoint


def average(folders: Sequence[Path], target: Path) -> None:
    """Write a checkpoint with the mean of the weights of others.

    It is not calibrated and not measured: its answers are those of neither.

    Args:
        folders: two checkpoints or more, of one architecture, label set and input.
        target: the folder to write.

    Raises:
        DataError: if they differ in more than their weights, or the folder cannot be written.
    """
    if len(folders) < 2:
        raise DataError("averaging needs two checkpoints or more")
    if any(folder.resolve() == target.resolve() for folder in folders):
        raise DataError(f"{target} is one of the checkpoints to average; give another -o")
    model, contract = load_checkpoint(folders[0])
    total = {name: tensor.double() for name, tensor in model.state_dict().items()}
    for folder in folders[1:]:
        other, its = load_checkpoint(folder)
        if other.config != model.config or its.input != contract.input:
            raise DataError(
                f"{folder} and {folders[0]} differ in architecture, labels or input; only checkpoints of one model can "
                "be averaged"
            )
        for name, tensor in other.state_dict().items():
            total[name] += tensor.double()
    mine = model.state_dict()
    # Counters of BatchNorm are whole numbers, of which the mean says nothing.
    model.load_state_dict(
        {name: (t / len(folders)).to(mine[name].dtype) if mine[name].is_floating_point() else mine[name]
         for name, t in total.items()}
    )  # fmt: skip
    if not all(torch.isfinite(tensor).all() for tensor in model.state_dict().values()):
        raise DataError("the mean has values that are not finite: one of the checkpoints is damaged")
    names = [folder.resolve().name for folder in folders]
    averaged = replace(
        contract,
        name=target.resolve().name,
        thresholds=(0.5,) * len(contract.labels),
        measured=None,
        calibration=None,
        provenance={**contract.provenance, "averaged": names},
    )
    save_checkpoint(target, model, averaged)
