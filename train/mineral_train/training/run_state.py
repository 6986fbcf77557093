"""How far a run has come, and the folder from which it goes on.

Nothing of a run is in one place only in memory: after each epoch `last/state.safetensors` is replaced, after the best
checkpoint has been, so that a kill at any moment costs at most the work since.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.metrics import EQUATION_6
from mineral_train.training import checkpoint
from mineral_train.training.logs import EpochRecord, write_log

if TYPE_CHECKING:
    import torch

    from mineral_train.training.config import TrainConfig

STATE = Path("last") / "state.safetensors"
LOG = "log.csv"
TENSORBOARD = "tensorboard"

_NAMES = {"map": "mAP", "loss": "loss"}


@dataclass(frozen=True)
class FitResult:
    """How a run ended.

    Attributes:
        best_epoch: the epoch whose weights are in the checkpoint.
        best_map: their mAP on the validation split by equation 6, 0..1.
        epochs: how many were trained.
        reason: why it ended, in words.
        parameters: how many the model has.
        peak_memory_mib: the largest of all sittings, see `logs.peak_memory`.
        peak_memory_name: how that was measured.
    """

    best_epoch: int
    best_map: float
    epochs: int
    reason: str
    parameters: int
    peak_memory_mib: float
    peak_memory_name: str

    def __str__(self) -> str:
        """One line for the user."""
        return (
            f"{self.reason}; best epoch {self.best_epoch}: validation mAP {100 * self.best_map:.2f} % ({EQUATION_6}); "
            f"peak memory {self.peak_memory_mib:.0f} MiB ({self.peak_memory_name})"
        )


@dataclass
class Progress:
    """How far a run has come; the JSON part of its state.

    Attributes:
        epoch: finished epochs.
        step: finished optimiser steps of the epoch after.
        loss_sum: sum of the losses of the images in those steps.
        best_epoch: 0 before the first validation.
        best_map: mAP of that epoch.
        history: one record per finished epoch.
        reason: why the run has ended, empty while it has not.
        start: which weights the run began with, in words.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    best_epoch: int = 0
    best_map: float = -1.0
    history: list[EpochRecord] = field(default_factory=list)
    reason: str = ""
    start: str = ""

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Progress:
        """Read what `dataclasses.asdict` wrote."""
        return cls(**{**record, "history": [EpochRecord(**epoch) for epoch in record["history"]]})

    def add(self, record: EpochRecord, config: TrainConfig) -> bool:
        """Count a finished epoch and see whether the run has ended; True if the epoch is the best so far."""
        self.epoch, self.step, self.loss_sum = record.epoch, 0, 0.0
        self.history.append(record)
        best = self._is_best(record, config)
        if best:
            self.best_epoch, self.best_map = record.epoch, record.val_map
        self.reason = self._reason(config)
        return best

    def _is_best(self, record: EpochRecord, config: TrainConfig) -> bool:
        if not self.best_epoch:
            return True
        so_far = self.history[self.best_epoch - 1]
        return record.val_loss < so_far.val_loss if config.best == "loss" else record.val_map > so_far.val_map

    def _reason(self, config: TrainConfig) -> str:
        if config.patience and self.epoch - self.best_epoch >= config.patience:
            return f"no better validation {_NAMES[config.best]} for {config.patience} epochs"
        return f"all {config.epochs} epochs are done" if self.epoch == config.epochs else ""


@dataclass(frozen=True)
class State:
    """What was read from a run's folder: the learner's tensors, its scaler's record, the progress."""

    tensors: dict[str, torch.Tensor]
    scaler: dict[str, Any]
    progress: Progress


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run and what identifies it: its recipe and its data."""

    path: Path
    config: TrainConfig
    manifest_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        return {"train": self.config.to_json(), "manifest_sha256": self.manifest_sha256}

    def load(self) -> State | None:
        """The state to go on from, None for a new run.

        Raises:
            MineralError: when the run was begun with another recipe or other data.
            DataError: when the state is damaged, or there is a checkpoint without one.
        """
        if not (self.path / STATE).exists():
            self._require_no_checkpoint()
            return None
        tensors, record = checkpoint.load_state(self.path / STATE)
        self._require_same(record)
        return State(tensors, record["scaler"], Progress.from_json(record["progress"]))

    def save(self, tensors: dict[str, torch.Tensor], scaler: dict[str, Any], progress: Progress) -> None:
        """Replace the state and the log.

        Raises:
            DataError: when they cannot be written; the earlier state is untouched.
        """
        record = {**self.identity, "scaler": scaler, "progress": asdict(progress)}
        checkpoint.save_state(self.path / STATE, tensors, record)
        write_log(self.path / LOG, progress.history)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else that lies in its folder."""
        for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, LOG):
            (self.path / name).unlink(missing_ok=True)
        for name in (STATE.parent.name, TENSORBOARD):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _require_no_checkpoint(self) -> None:
        if (self.path / checkpoint.CONFIG).exists():
            raise DataError(
                f"{self.path} has a checkpoint but no {STATE.as_posix()} to go on from: give another -o, or --restart"
            )

    def _require_same(self, record: dict[str, Any]) -> None:
        differences = self.config.differences(record["train"])
        if record["manifest_sha256"] != self.manifest_sha256:
            differences.append("the manifest's content")
        if differences:
            raise MineralError(
                f"{self.path} was begun otherwise ({'; '.join(differences)}): "
                "go on with the same options, give another -o, or begin again with --restart"
            )
