"""One process or several: who does what, and how their results come together.

`torchrun --nproc-per-node 4 -m mineral_train fit ...` starts one process per GPU (gloo on CPU). A recipe means the
same on any number of them: `batch` counts the images of one optimiser step over all processes, and the gradient
is that of the mean over that batch, also for the last one, which may not divide evenly.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mineral_batch.errors import MineralError
from mineral_train.model.backbones import import_timm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@dataclass(frozen=True)
class Process:
    """This process among those that train together.

    Attributes:
        rank: 0 .. world - 1.
        world: how many processes train together.
        device: where this one computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one that writes files and talks to the user."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            dist.barrier()

    def total(self, *values: float) -> list[float]:
        """The sum over all processes of each value, in float64."""
        if self.world == 1:
            return list(values)
        where = self.device if self.device.type == "cuda" else torch.device("cpu")
        summed = torch.tensor(values, dtype=torch.float64, device=where)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """The CPU tensors `part` of all processes in the order of their ranks; shapes may differ."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part.cpu())
        return parts

    def wrap(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over the processes; itself where there is only one.

        BatchNorm normalises by the images of its own process, so a CNN that is trained on several differs from one
        that is trained on one, unless `share_batch_norm` (CUDA only) came before.
        """
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


def choose_device(name: str) -> torch.device:
    """The device that `name` means: `auto` is CUDA where there is one, else the CPU.

    Raises:
        MineralError: when the device is unknown or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MineralError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MineralError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no GPU here: use --device cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise MineralError(f"device {name!r} is not supported for training: use auto, cpu, cuda or cuda:N")
    return device


@contextmanager
def join(device: str) -> Iterator[Process]:
    """Join the processes that `torchrun` started; alone, when it did not start this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    place = choose_device(device)
    if world == 1:
        yield Process(0, 1, place)
        return
    if place.type == "cuda":
        place = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(place)
    if place.type == "cuda":
        dist.init_process_group("nccl", device_id=place)
    else:
        dist.init_process_group("gloo")
    try:
        yield Process(dist.get_rank(), world, place)
    finally:
        dist.destroy_process_group()


def share_batch_norm(model: nn.Module) -> None:
    """Let every BatchNorm normalise by the images of all processes, which works on CUDA only.

    By timm's conversion: torch's own loses the activation that timm's `BatchNormAct2d` contains.
    """
    import_timm()
    convert = importlib.import_module("timm.layers").convert_sync_batchnorm
    for name, child in model.named_children():
        setattr(model, name, convert(child))


class Piece(NamedTuple):
    """The images of one forward and backward pass.

    Attributes:
        indices: places in the training set, never empty.
        weight: what the mean loss over them is multiplied by, so that the gradients add up (over a process's pieces)
            and average (over processes) to the gradient of the mean over the whole batch. 0 for a stand-in.
    """

    indices: list[int]
    weight: float


def plan_epoch(order: list[int], *, batch: int, accumulate: int, rank: int, world: int) -> list[list[Piece]]:
    """What one process computes in each optimiser step of an epoch.

    Args:
        order: the epoch's order of images.
        batch: images per optimiser step, over all processes; the last step takes what is left.
        accumulate: pieces into which each process cuts its share, one forward and backward pass each.
        rank: of this process.
        world: number of processes.

    Returns:
        For each step at least one piece. A process for which nothing is left in the last step gets one image
        with weight 0, because all must take part in the averaging.
    """
    return [_share(order[start : start + batch], accumulate, rank, world) for start in range(0, len(order), batch)]


def _share(batch: list[int], accumulate: int, rank: int, world: int) -> list[Piece]:
    parts = np.array_split(np.asarray(batch), world * accumulate)[rank * accumulate : (rank + 1) * accumulate]
    pieces = [Piece(part.tolist(), len(part) * world / len(batch)) for part in parts if len(part)]
    return pieces or [Piece(batch[:1], 0.0)]
