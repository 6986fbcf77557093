"""What a run records: `log.csv`, TensorBoard, peak memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

import torch

from mineral_batch.evaluation.metrics import EQUATION_6
from mineral_batch.system import peak_memory_mib
from mineral_train.data.manifest import write_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MAP_COLUMN = f"val_map_{EQUATION_6.replace('-', '_')}"
_MIB = 2**20


@dataclass(frozen=True)
class EpochRecord:
    """One line of `log.csv`.

    Attributes:
        epoch: from 1.
        lr: learning rate of the backbone's last layer in the epoch's last step.
        train_loss: mean over the epoch's images, as they were met.
        val_loss: mean over the validation split after the epoch, of the weights that would be kept (EMA, if on).
        val_map: their mAP on it, by equation 6, 0..1.
        seconds: of training and validating, wall clock.
        peak_memory_mib: see `peak_memory`.
    """

    epoch: int
    lr: float
    train_loss: float
    val_loss: float
    val_map: float
    seconds: float
    peak_memory_mib: float

    def line(self, epochs: int) -> str:
        """Format the record as one line for the user."""
        return (
            f"Epoch {self.epoch}/{epochs}  lr {self.lr:.2e}  loss {self.train_loss:.4f}  validation: "
            f"loss {self.val_loss:.4f}, mAP {100 * self.val_map:.2f}% ({EQUATION_6})  {self.seconds:.0f} s"
        )


def write_log(path: Path, history: Sequence[EpochRecord]) -> None:
    """Rewrite the whole history, so that an epoch that was repeated after a kill is there once."""
    header = [MAP_COLUMN if f.name == "val_map" else f.name for f in fields(EpochRecord)]
    write_table(path, header, [list(asdict(record).values()) for record in history])


class TensorBoard:
    """Scalars of each epoch in TensorBoard's format; needs the package `tensorboard`."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # purge_step hides what an interrupted sitting logged from this epoch on.
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, record: EpochRecord) -> None:
        """Write one epoch's scalars so that they are visible at once."""
        for name, tag in _TAGS.items():
            self._writer.add_scalar(tag, getattr(record, name), record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


_TAGS = {
    "lr": "train/lr",
    "train_loss": "train/loss",
    "val_loss": "val/loss",
    "val_map": f"val/mAP {EQUATION_6}",
    "seconds": "run/seconds",
    "peak_memory_mib": "run/peak memory MiB",
}


def peak_memory(device: torch.device) -> float:
    """Peak in MiB: of tensors on a GPU since `start_peak_memory`, or of this process's resident memory ever."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    mib = peak_memory_mib()
    return float("nan") if mib is None else mib


def peak_memory_name(device: torch.device) -> str:
    """Say how `peak_memory` measures on this device: the two are not comparable."""
    return "CUDA max_memory_allocated" if device.type == "cuda" else "peak RSS of the process"


def start_peak_memory(device: torch.device) -> None:
    """Forget earlier peaks, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
