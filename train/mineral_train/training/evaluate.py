"""Run a model over a dataset, in float32."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader

from mineral_batch.errors import DataError
from mineral_train.model.normalize import Normalize
from mineral_train.training.distributed import Process
from mineral_train.training.stop import ignore_in_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mineral_train.data.dataset import PhotoDataset, Sample
    from mineral_train.model.network import MineralNet


DEAD_WORKER = (
    "a process that decodes images has died, most likely killed by the system for want of memory; the same command "
    "with fewer --workers, or --workers 0, goes on"
)


def evaluate_model(
    model: MineralNet,
    dataset: PhotoDataset,
    *,
    device: torch.device | str = "cpu",
    batch: int = 16,
    workers: int = 0,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Compute probabilities and truth for each of N images.

    Args:
        model: moved to `device` and put into evaluation mode.
        dataset: without augmentation.
        device: where to compute.
        batch: images at a time.
        workers: processes that decode; 0 = this one.

    Returns:
        scores: (N, L) float32 probabilities, rows in the dataset's order.
        truth: (N, L) bool.

    Raises:
        DataError: when an image cannot be decoded.
    """
    model.to(device)
    process = Process(0, 1, torch.device(device))
    logits = predict_logits(model, dataset, process, batch=batch, workers=workers)
    return logits.sigmoid().numpy(), dataset.targets.bool().numpy()


@torch.inference_mode()
def predict_logits(
    model: MineralNet,
    dataset: PhotoDataset,
    process: Process,
    *,
    batch: int,
    workers: int,
    check: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Compute logits (N, L) float32 on the CPU; each process computes a share, all of them get the whole.

    `check` is called after every batch and may raise to end it.
    """
    model.eval()
    normalize = Normalize(dataset.spec).to(process.device)
    mine = list(range(process.rank, len(dataset), process.world))
    loader = make_loader(dataset, [mine[i : i + batch] for i in range(0, len(mine), batch)], workers, process.device)
    parts = []
    for pixels, _, _ in samples(loader):
        parts.append(model(normalize(to_device(pixels, process.device))).float().cpu())
        check()
    empty = torch.empty(0, len(dataset.targets[0]))
    logits = torch.empty(len(dataset), empty.shape[1])
    for rank, part in enumerate(process.gather(torch.cat([empty, *parts]))):
        logits[rank :: process.world] = part
    return logits


def make_loader(
    dataset: PhotoDataset, batches: Sequence[list[int]], workers: int, device: torch.device
) -> DataLoader[Sample]:
    """Make a loader of the given batches in the given order."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user said so
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=device.type == "cuda",
            worker_init_fn=ignore_in_worker,
            generator=torch.Generator(),  # else it draws from the global one, which dropout follows
        )


def samples(loader: DataLoader[Sample]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Iterate over a loader; what goes wrong in a worker is one line again, without its traceback.

    Raises:
        DataError: naming the image that cannot be decoded, or that a worker was killed.
    """
    try:
        yield from loader
    except DataError as error:
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("mineral_batch.errors.DataError: ")) from None
    except RuntimeError as error:
        if not is_dead_worker(error):
            raise
        # Its frames keep the loader's iterator alive, whose signal handler would raise again wherever we are then.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        raise DataError(DEAD_WORKER) from None


def is_dead_worker(error: RuntimeError) -> bool:
    """Whether torch says that a worker of a loader is dead; it knows no other sign of it than the text."""
    return "DataLoader worker" in str(error)


def to_device(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move (N, 3, H, W) uint8, channels last in memory: convolutions are faster so, on a CPU and on a GPU."""
    return pixels.to(device, non_blocking=True, memory_format=torch.channels_last)
