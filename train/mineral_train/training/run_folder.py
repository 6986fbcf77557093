"""How far a run has come, and the folder from which it resumes.

The state `last/state.safetensors` is replaced after each epoch and every few minutes within one, after the best
checkpoint, so that a kill at any moment costs at most the work since.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.metrics import EQUATION_6
from mineral_batch.files import cannot_write, remove_leftovers
from mineral_train.training import checkpoint
from mineral_train.training.logs import EpochRecord, write_log

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from mineral_train.training.config import TrainConfig

STATE = Path("last") / "state.safetensors"
LOG = "log.csv"
TENSORBOARD = "tensorboard"
LOCK = ".lock"

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
            f"{self.reason}; best epoch {self.best_epoch}: validation mAP {100 * self.best_map:.2f}% ({EQUATION_6}); "
            f"peak memory {self.peak_memory_mib:.0f} MiB ({self.peak_memory_name})"
        )


@dataclass
class Progress:
    """How far a run has come; the JSON part of its state.

    Attributes:
        epoch: finished epochs.
        step: finished optimizer steps of the next epoch.
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
    """What a run's folder holds: the learner's tensors, its scaler's record, the progress."""

    tensors: dict[str, torch.Tensor]
    scaler: dict[str, Any]
    progress: Progress


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, and what identifies the run: its recipe and its data."""

    path: Path
    config: TrainConfig
    manifest_sha256: str

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that began."""
        return {"train": self.config.to_json(), "manifest_sha256": self.manifest_sha256}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone, and remove what killed processes left half written.

        Raises:
            MineralError: if another process trains into it.
            DataError: if the folder cannot be written.
        """
        path = self.path / LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = _lock(path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        if file is None:
            raise MineralError(f"another `mineral-train fit` writes to {self.path}; wait for it, or give another -o")
        try:
            checkpoint.finish_checkpoint(self.path)
            for name in ("checkpoint", LOG, STATE):
                remove_leftovers(self.path / name)
            yield
        finally:
            path.unlink(missing_ok=True)
            file.close()
            if not any(self.path.iterdir()):  # nothing came of it
                self.path.rmdir()

    def is_locked(self) -> bool:
        """Return whether a process holds the folder, as seen from here."""
        return (self.path / LOCK).exists()

    def load(self) -> State | None:
        """Load the state to resume from, None for a new run.

        Raises:
            MineralError: if the run was begun with another recipe or other data.
            DataError: if the state is damaged, or there is a checkpoint without one.
        """
        if not (self.path / STATE).exists():
            self._require_no_checkpoint()
            return None
        tensors, record = checkpoint.load_state(self.path / STATE)
        self._require_same(record)
        return State(tensors, record["scaler"], Progress.from_json(record["progress"]))

    def has_best(self) -> bool:
        """Whether the best checkpoint is there and whole."""
        try:
            checkpoint.require_pair(self.path)
        except DataError:
            return False
        return True

    def save(self, tensors: dict[str, torch.Tensor], scaler: dict[str, Any], progress: Progress) -> None:
        """Replace the state and the log.

        Raises:
            DataError: if they cannot be written, or a tensor is not finite; the earlier state is untouched.
        """
        record = {**self.identity, "scaler": scaler, "progress": asdict(progress)}
        checkpoint.save_state(self.path / STATE, tensors, record)
        write_log(self.path / LOG, progress.history)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else in its folder."""
        for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, LOG):
            (self.path / name).unlink(missing_ok=True)
        for name in (STATE.parent.name, TENSORBOARD):
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _require_no_checkpoint(self) -> None:
        if (self.path / checkpoint.CONFIG).exists():
            raise DataError(
                f"{self.path} has a checkpoint but no {STATE.as_posix()} to resume from: give another -o, or --restart"
            )
        if (self.path / LOG).exists():  # the state is written first
            raise DataError(
                f"{self.path / LOG} already exists and {STATE.as_posix()} does not: give another -o, or --restart"
            )

    def _require_same(self, record: dict[str, Any]) -> None:
        differences = self.config.differences(record["train"])
        if record["manifest_sha256"] != self.manifest_sha256:
            differences.append(
                "the manifest's content; to leave damaged photographs out, keep the manifest and add --skip-damaged"
            )
        if differences:
            raise MineralError(
                f"{self.path} was begun differently ({'; '.join(differences)}): "
                "resume with the same options, give another -o, or start again with --restart"
            )


def _lock(path: Path) -> BinaryIO | None:
    """Open and lock a file; None if another process holds it."""
    while True:
        file = path.open("ab")
        if not _try_lock(file):
            file.close()
            return None
        # Its holder removes the file at the end: what we locked may be no longer the file of that name.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()


def _try_lock(file: BinaryIO) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
