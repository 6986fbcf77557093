"""One process or several: how they share the work and combine their results.

`torchrun --nproc-per-node 4 -m mineral_train fit ...` starts one process per GPU (gloo on CPU), and the same command on
each of several nodes, with `--nnodes` and a rendezvous, the processes of all of them. A recipe means the
same on any number of them: `batch` counts the images of one optimizer step over all processes, and the gradient
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
    """One of the processes that train together.

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
        """Whether this process writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier()

    def total(self, *values: float) -> list[float]:
        """Sum each value over all processes, in float64."""
        if self.world == 1:
            return list(values)
        where = self.device if self.device.type == "cuda" else torch.device("cpu")
        summed = torch.tensor(values, dtype=torch.float64, device=where)
        dist.all_reduce(summed)
        return [float(value) for value in summed]

    def largest(self, value: int) -> int:
        """Return the largest of all processes' values, in all of them."""
        if self.world == 1:
            return value
        where = self.device if self.device.type == "cuda" else torch.device("cpu")
        largest = torch.tensor(value, device=where)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def agree(self, value: object) -> bool:
        """Return whether all processes gave equal values."""
        if self.world == 1:
            return True
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return all(other == values[0] for other in values)

    def gather(self, part: torch.Tensor) -> list[torch.Tensor]:
        """Gather the CPU tensors `part` of all processes in the order of their ranks; shapes may differ."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part.cpu())
        return parts

    def wrap(self, model: nn.Module) -> nn.Module:
        """Average the gradients of `model` over the processes; returns it unchanged if there is only one.

        BatchNorm normalizes by the images of its own process, so a CNN that is trained on several differs from one
        that is trained on one, unless `share_batch_norm` (CUDA only) came before.
        """
        if self.world == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)


def choose_device(name: str) -> torch.device:
    """Choose the device called `name`; `auto` is CUDA if there is a GPU, else the CPU.

    Raises:
        MineralError: if the device is unknown or not on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise MineralError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MineralError(f"--device {name}: torch {torch.__version__} finds no GPU on this machine; use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise MineralError(f"device {name!r} is not supported for training: use auto, cpu, cuda or cuda:N")
    return device


@contextmanager
def join(device: str) -> Iterator[Process]:
    """Join the processes that `torchrun` started; a process that it did not start trains alone."""
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


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether torch says that another process has ended; of gloo there is no other sign of it than the text."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def share_batch_norm(model: nn.Module) -> None:
    """Make every BatchNorm share its statistics among the processes; works on CUDA only.

    By timm's conversion: torch's own loses the activation that timm's `BatchNormAct2d` contains.
    """
    import_timm()
    convert = importlib.import_module("timm.layers").convert_sync_batchnorm
    for name, child in model.named_children():
        setattr(model, name, convert(child))


class MicroBatch(NamedTuple):
    """The images of one forward and backward pass of one process.

    Attributes:
        indices: places in the training set, never empty.
        weight: factor of the mean loss over them. With it the gradients add up (over a process's micro-batches) and
            average (over processes) to the gradient of the mean over the whole batch. 0 for a placeholder.
    """

    indices: list[int]
    weight: float


def plan_epoch(order: list[int], *, batch: int, accumulate: int, rank: int, world: int) -> list[list[MicroBatch]]:
    """Plan what one process computes in each optimizer step of an epoch.

    Args:
        order: the epoch's order of images.
        batch: images per optimizer step, over all processes; the last step takes what is left.
        accumulate: micro-batches into which each process cuts its share.
        rank: of this process.
        world: number of processes.

    Returns:
        At least one micro-batch per step. A process with no image left in the last step gets one image with weight
        0, because all must take part in the averaging.
    """
    return [_share(order[start : start + batch], accumulate, rank, world) for start in range(0, len(order), batch)]


def _share(batch: list[int], accumulate: int, rank: int, world: int) -> list[MicroBatch]:
    parts = np.array_split(np.asarray(batch), world * accumulate)[rank * accumulate : (rank + 1) * accumulate]
    pieces = [MicroBatch(part.tolist(), len(part) * world / len(batch)) for part in parts if len(part)]
    return pieces or [MicroBatch(batch[:1], 0.0)]
