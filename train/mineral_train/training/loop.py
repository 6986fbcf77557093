"""The training loop: epochs over the training split, validation after each, and a run that can stop anywhere.

A run is a folder: the best checkpoint so far (`model.safetensors`, `config.json`), `log.csv`, and under `last/` the
state from which the same command goes on. Everything random is a function of (seed, step, process) or of (seed, epoch,
image), not of what was drawn before: a run which was killed and resumed ends with the weights of one which was not,
bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.evaluation.thresholds import Rule
from mineral_batch.system import keep_freed_memory
from mineral_train.data.dataset import PhotoDataset
from mineral_train.data.manifest import Manifest, read_manifest
from mineral_train.model.network import input_spec, parameters_by_part
from mineral_train.training import checkpoint, optim
from mineral_train.training.calibrate import calibrate_checkpoint
from mineral_train.training.config import DoesNotFitError, RunOptions, TrainConfig
from mineral_train.training.describe import make_contract
from mineral_train.training.distributed import Process, join, plan_epoch
from mineral_train.training.evaluate import make_loader, predict_logits, samples, to_device
from mineral_train.training.learner import Learner
from mineral_train.training.logs import EpochRecord, TensorBoard, peak_memory, peak_memory_name, start_peak_memory
from mineral_train.training.run_state import TENSORBOARD, FitResult, Progress, RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from mineral_train.training.distributed import Piece

    Listener = Callable[[EpochRecord], None]

_SHOW_EVERY = 10  # steps: reading the loss from a GPU makes it wait


def fit(
    config: TrainConfig,
    manifest: str | Path,
    run: str | Path,
    options: RunOptions | None = None,
    *,
    on_epoch: Listener | None = None,
    say: Callable[[str], None] | None = None,
) -> FitResult:
    """Train a model on a manifest's training split, choosing the epoch by its validation split.

    A run that was interrupted goes on from its last saved state; one that has ended only gives its result again. Under
    `torchrun` every process calls this with the same arguments and a folder that all of them can read.

    Args:
        config: the recipe.
        manifest: the CSV (see `manifest.read_manifest`); its `test` split is not looked at.
        run: the folder of the run.
        options: how to carry it out on this machine.
        on_epoch: called in the main process after every epoch, when its state has been saved.
        say: called there with lines for the user.

    Raises:
        DataError: when the manifest, an image, or the run's folder is not as it must be.
        DoesNotFitError: when the GPU's memory does not suffice.
        MineralError: when the recipe differs from the one that the run was begun with, or the loss is not finite.
    """
    options = options or RunOptions()
    with join(options.device) as process, _deterministic(options.deterministic), _memory_in_words():
        if process.device.type == "cpu":
            keep_freed_memory()
        data = _Data.read(Path(manifest), config, options)
        trainer = Trainer(config, data, Path(run), options, process)
        if not process.main:
            on_epoch = say = None
        return trainer.run(on_epoch or _nothing, say or _nothing)


def _nothing(_: object) -> None:
    """Takes what nobody wants to hear."""


@dataclass(frozen=True)
class _Data:
    """The two splits that training looks at.

    Attributes:
        name: of the manifest's file.
        sha256: of the manifest's file, by which a resumed run knows that the data are the same.
        train: with augmentation.
        val: without.
    """

    name: str
    sha256: str
    train: PhotoDataset
    val: PhotoDataset

    @classmethod
    def read(cls, path: Path, config: TrainConfig, options: RunOptions) -> _Data:
        manifest = read_manifest(path, config.model.labels)
        for split in ("train", "val"):
            _require_positives(manifest, split, path)
        spec = input_spec(config.model)
        train, val = (
            PhotoDataset(manifest.select(split), manifest.labels, spec, augment, seed=config.seed, cache=options.cache)
            for split, augment in (("train", config.augmentation), ("val", None))
        )
        return cls(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), train, val)


def _require_positives(manifest: Manifest, split: str, path: Path) -> None:
    if not manifest.targets(split).any():
        raise DataError(
            f"{path}: no image of the split {split!r} has a label; "
            "training needs the splits train and val: make them with `mineral-train data`"
        )


class Trainer:
    """One run in one process."""

    def __init__(self, config: TrainConfig, data: _Data, run: Path, options: RunOptions, process: Process) -> None:
        self.config, self.data, self.options, self.process = config, data, options, process
        self.folder = RunFolder(run, config, data.sha256)
        if options.restart:
            self._in_main(self.folder.clear)
        state = self.folder.load()
        spec, targets = data.train.spec, data.train.targets
        self.learner = Learner(config, options, process, spec, targets, resumed=state is not None)
        if state is None:
            self.progress = Progress(start=_start(config, self.learner))
        else:
            self.progress = state.progress
            self.learner.restore(state.tensors, state.scaler, run)

    def run(self, on_epoch: Listener, say: Callable[[str], None]) -> FitResult:
        """Train until the recipe's end; at once back when that has been reached before."""
        start_peak_memory(self.process.device)
        say(self._headline())
        with self._tensorboard() as log:
            while not self.progress.reason:
                record = self._epoch()
                log(record)
                say(record.line(self.config.epochs))
                on_epoch(record)
        self._calibrate(say)
        say(str(self._result()))
        return self._result()

    def _calibrate(self, say: Callable[[str], None]) -> None:
        """Calibrate the best checkpoint on the validation split, unless an earlier sitting did."""
        model, contract = checkpoint.load_checkpoint(self.folder.path)
        if contract.is_calibrated:
            return
        device, batch = self.process.device, self.config.batch
        logits = predict_logits(model.to(device), self.data.val, self.process, batch=batch, workers=self._workers)
        try:
            self._in_main(lambda: self._save_calibrated(logits.numpy()))
        except DataError as error:
            say(f"warning: the model is not calibrated: {error}")

    def _save_calibrated(self, logits: NDArray[np.float32]) -> None:
        rule = Rule("f1") if self.config.tune_thresholds else None
        words = f"validation split of {self.data.name}"
        calibrate_checkpoint(self.folder.path, logits, self._truth, words, rule=rule)

    def _epoch(self) -> EpochRecord:
        start, epoch = time.perf_counter(), self.progress.epoch + 1
        lr, train_loss = self._train(epoch)
        scores, val_loss = self._validate()
        mean_ap = mean_average_precision(scores, self._truth).mean
        seconds, memory = time.perf_counter() - start, peak_memory(self.process.device)
        record = EpochRecord(epoch, lr, train_loss, val_loss, mean_ap, seconds, memory)
        # The checkpoint before the state that speaks of it: a kill between the two repeats the epoch.
        if self.progress.add(record, self.config):
            self._in_main(lambda: self._save_best(scores))
        self._save()
        return record

    # -- learning ------------------------------------------------------------------------------------------------

    def _train(self, epoch: int) -> tuple[float, float]:
        """One epoch, or the rest of it; the last step's learning rate and the mean loss over the images."""
        self.learner.start_epoch(frozen=epoch <= self.config.freeze_epochs)
        self.data.train.set_epoch(epoch)
        steps, first = self._plan(epoch), (epoch - 1) * self._steps_per_epoch
        batches = self._batches([piece.indices for step in steps[self.progress.step :] for piece in step])
        loss_sum = torch.tensor(self._earlier_loss, dtype=torch.float64, device=self.process.device)
        lr = 0.0
        for number in self._bar(epoch, len(steps), loss_sum):
            lr = self.config.lr * optim.lr_factor(self.config, first + number, self._steps_per_epoch)
            loss_sum += self.learner.step(steps[number], batches, first + number, lr)
            self._save_within_epoch(number + 1, loss_sum)
        return lr, self._mean_loss(loss_sum, epoch)

    def _plan(self, epoch: int) -> list[list[Piece]]:
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.data.train)).tolist()
        return plan_epoch(
            order,
            batch=self.config.batch,
            accumulate=self.config.accumulate,
            rank=self.process.rank,
            world=self.process.world,
        )

    def _batches(self, batches: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = make_loader(self.data.train, batches, self._workers, self.process.device)
        for pixels, targets, _ in samples(loader):
            yield to_device(pixels, self.process.device), targets.to(self.process.device, non_blocking=True)

    def _mean_loss(self, loss_sum: torch.Tensor, epoch: int) -> float:
        mean = self.process.total(float(loss_sum))[0] / len(self.data.train)
        if not math.isfinite(mean):
            raise MineralError(
                f"the loss is not finite in epoch {epoch}: begin again (--restart) with a lower --lr, "
                "or with --clip 1, or with --precision bf16 in place of fp16"
            )
        return mean

    @property
    def _earlier_loss(self) -> float:
        """What the epoch's steps of an earlier sitting cost; one process remembers it for all."""
        return self.progress.loss_sum if self.process.main else 0.0

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train) / self.config.batch)

    # -- validating ----------------------------------------------------------------------------------------------

    @property
    def _truth(self) -> NDArray[np.bool_]:
        return self.data.val.targets.bool().numpy()

    def _validate(self) -> tuple[NDArray[np.float32], float]:
        """Probabilities (N, L) of the validation split, the same in every process, and the mean loss."""
        logits = predict_logits(
            self.learner.kept, self.data.val, self.process, batch=self.config.batch, workers=self._workers
        )
        device = self.process.device
        loss = self.learner.criterion(logits.to(device), self.data.val.targets.to(device))
        return logits.sigmoid().numpy(), float(loss)

    # -- keeping -------------------------------------------------------------------------------------------------

    def _save_best(self, scores: NDArray[np.float32]) -> None:
        contract = make_contract(
            self.config,
            self.data.val.spec,
            scores,
            self._truth,
            name=self.folder.path.resolve().name,
            dataset=f"validation split of {self.data.name}",
            facts=self._facts(),
        )
        checkpoint.save_checkpoint(self.folder.path, self.learner.kept, contract, **self.folder.identity)

    def _facts(self) -> dict[str, Any]:
        return {
            "start": self.progress.start,
            "manifest": self.data.name,
            "manifest_sha256": self.data.sha256,
            "images": {"train": len(self.data.train), "val": len(self.data.val)},
            "epoch": self.progress.best_epoch,
            "weights": "moving average" if self.config.ema else "as trained",
            "processes": self.process.world,
            "device": self.process.device.type,
        }

    def _save(self) -> None:
        learner = self.learner
        self._in_main(lambda: self.folder.save(learner.tensors(), learner.scaler.state_dict(), self.progress))

    def _save_within_epoch(self, done: int, loss_sum: torch.Tensor) -> None:
        every = self.options.save_every
        if every and done % every == 0 and done < self._steps_per_epoch:
            self.progress.step = done
            self.progress.loss_sum = self.process.total(float(loss_sum))[0]
            self._save()

    def _in_main(self, action: Callable[[], None]) -> None:
        """Run `action` in the main process while the others wait for it."""
        if self.process.main:
            action()
        self.process.barrier()

    # -- telling -------------------------------------------------------------------------------------------------

    def _headline(self) -> str:
        parts = parameters_by_part(self.learner.model).items()
        done = f"; going on after epoch {self.progress.epoch}" if self.progress.history else ""
        return (
            f"{self.config.model.backbone}, {self.config.model.method}; "
            f"parameters (M): {', '.join(f'{part} {count / 1e6:.2f}' for part, count in parts)}; "
            f"{self.progress.start}; "
            f"{len(self.data.train)} images to train on, {len(self.data.val)} to validate on; "
            f"{self.process.world} x {self.process.device}{done}"
        )

    def _result(self) -> FitResult:
        progress = self.progress
        return FitResult(
            best_epoch=progress.best_epoch,
            best_map=progress.best_map,
            epochs=progress.epoch,
            reason=progress.reason,
            parameters=sum(p.numel() for p in self.learner.model.parameters()),
            peak_memory_mib=max(record.peak_memory_mib for record in progress.history),
            peak_memory_name=peak_memory_name(self.process.device),
        )

    def _bar(self, epoch: int, steps: int, loss_sum: torch.Tensor) -> Iterator[int]:
        """The numbers of the steps that are left, with a bar that shows the loss so far and the best mAP."""
        progress = self.progress
        hidden = self.options.quiet or not self.process.main or not sys.stderr.isatty()
        best = f", best mAP {100 * progress.best_map:.2f} %" if progress.best_epoch else ""
        title = f"epoch {epoch}/{self.config.epochs}{best}"
        with tqdm(total=steps, initial=progress.step, desc=title, disable=hidden, leave=False, unit="step") as bar:
            for number in range(progress.step, steps):
                yield number
                bar.update()
                if not hidden and (number + 1) % _SHOW_EVERY == 0:
                    seen = (number + 1) * self.config.batch / self.process.world
                    bar.set_postfix(loss=f"{float(loss_sum) / seen:.4f}")

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Listener]:
        if not self.options.tensorboard or not self.process.main or self.progress.reason:
            yield _nothing
            return
        board = TensorBoard(self.folder.path / TENSORBOARD, self.progress.epoch + 1)
        try:
            yield board.add
        finally:
            board.close()

    @property
    def _workers(self) -> int:
        if self.options.workers is not None:
            return self.options.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # On a CPU the model needs the cores itself.
        return min(8, cores) if self.process.device.type == "cuda" else min(2, cores - 1)


def _start(config: TrainConfig, learner: Learner) -> str:
    """Which weights the run begins with, in words."""
    return f"all weights from {Path(config.init).name}" if config.init else str(learner.model.loaded)


@contextlib.contextmanager
def _memory_in_words() -> Iterator[None]:
    """Within, a GPU that is too small is one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise DoesNotFitError(
            "the GPU's memory does not suffice: --accumulate 2 (or 4, 8) gives the same gradients in less of it, "
            "--precision bf16 halves much of it"
        ) from None


@contextlib.contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Within, torch uses only kernels that give the same bits each time, where `wanted`."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        # cuBLAS reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
