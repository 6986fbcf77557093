"""The images of optimizer steps, loaded onto the device of a process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from mineral_batch.system import cpu_count
from mineral_train.training.config import RunOptions, TrainConfig
from mineral_train.training.data import TrainingData
from mineral_train.training.distributed import Process, plan_epoch
from mineral_train.training.evaluate import make_loader, samples, to_device

if TYPE_CHECKING:
    from mineral_train.training.distributed import MicroBatch

    #: Pixels (N, 3, H, W) and targets (N, L), on the device.
    Batch = tuple[torch.Tensor, torch.Tensor]


class Steps:
    """The steps of an epoch in one process.

    Args:
        data: of the run.
        config: the recipe.
        options: how to carry it out.
        process: which share of each step is loaded, and where to.
        say: called with a line for each image that is skipped.

    Attributes:
        per_epoch: how many steps there are.
        workers: processes that decode.
    """

    def __init__(
        self,
        data: TrainingData,
        config: TrainConfig,
        options: RunOptions,
        process: Process,
        say: Callable[[str], None],
    ) -> None:
        self._data, self._config, self._process, self._say = data, config, process, say
        self.per_epoch = math.ceil(data.sampler.draws / config.batch)
        self.workers = _worker_count(options, process)

    def plan(self, epoch: int) -> list[list[MicroBatch]]:
        """Return this process's pieces of each step of an epoch."""
        return plan_epoch(
            self._data.sampler.order(epoch),
            batch=self._config.batch,
            accumulate=self._config.accumulate,
            rank=self._process.rank,
            world=self._process.world,
        )

    def load(self, plan: list[list[MicroBatch]]) -> Iterator[tuple[list[MicroBatch], list[Batch]]]:
        """Load the images of each step, all pieces before the first is used: nothing fails in mid-step."""
        indices = [piece.indices for step in plan for piece in step]
        loader = samples(make_loader(self._data.train, indices, self.workers, self._process.device))
        for step in plan:
            loaded = [self._to_device(piece, *next(loader)) for piece in step]
            yield [piece for piece, _ in loaded], [batch for _, batch in loaded]

    def _to_device(
        self, piece: MicroBatch, pixels: torch.Tensor, targets: torch.Tensor, index: torch.Tensor
    ) -> tuple[MicroBatch, Batch]:
        """Move a piece's images to the device, without those that could not be decoded (index below 0)."""
        if (index < 0).any():
            for damaged in index[index < 0].tolist():
                self._say(f"Skipped in train: {self._data.train.paths[~damaged]} cannot be decoded")
            good = index >= 0
            if good.any():
                pixels, targets = pixels[good], targets[good]
                piece = piece._replace(indices=index[good].tolist())
            else:
                piece = piece._replace(weight=0.0)
        device = self._process.device
        return piece, (to_device(pixels, device), targets.to(device, non_blocking=True))


def _worker_count(options: RunOptions, process: Process) -> int:
    if options.workers is not None:
        return options.workers
    # On a CPU the model needs the cores itself.
    return min(8, cpu_count()) if process.device.type == "cuda" else min(2, cpu_count() - 1)
