"""The training loop of one process: epochs over the training split, validation after each, and what is saved."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mineral_batch.errors import DataError, MineralError
from mineral_batch.evaluation.metrics import mean_average_precision
from mineral_batch.evaluation.thresholds import Rule
from mineral_train.data import images
from mineral_train.model.network import input_spec, parameters_by_part
from mineral_train.training import checkpoint, optim
from mineral_train.training.calibrate import calibrate_checkpoint
from mineral_train.training.config import RunOptions
from mineral_train.training.data import TrainingData, TrainingManifest
from mineral_train.training.describe import make_contract
from mineral_train.training.distributed import Process
from mineral_train.training.estimate import suggest_few
from mineral_train.training.evaluate import predict_logits
from mineral_train.training.initial import require_start, start_in_words
from mineral_train.training.learner import Learner
from mineral_train.training.logs import EpochRecord, TensorBoard, peak_memory, peak_memory_name, start_peak_memory
from mineral_train.training.reporter import Reporter
from mineral_train.training.run_folder import TENSORBOARD, FitResult, Progress, RunFolder, State
from mineral_train.training.sets import SetFigures, measure_sets, sets_in_words
from mineral_train.training.steps import Steps
from mineral_train.training.stop import RunStopped, StopSignal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mineral_train.model.network import MineralNet

    Listener = Callable[[EpochRecord], None]

_MIXED = 0.9  # of the run's steps have mixup or CutMix
_ASK_EVERY = 16  # steps between two questions to all processes whether it is time to save, or to stop on a GPU


def ignore(_: object) -> None:
    """Take what nobody listens to."""


class Trainer:
    """One run in one process.

    Args:
        source: the manifest.
        data: its images; None for a run that is finished.
        folder: of the run.
        state: to resume from, None for a new run.
        options: how to carry it out.
        process: where.
        stop: says whether to end.
        say: called with lines for the user.
    """

    def __init__(
        self,
        source: TrainingManifest,
        data: TrainingData,
        folder: RunFolder,
        state: State | None,
        options: RunOptions,
        process: Process,
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> None:
        self.config, self.source, self.data, self.folder = folder.config, source, data, folder
        self.options, self.process, self.stop, self.say = options, process, stop, say
        self.learner = Learner(
            self.config,
            options,
            process,
            data.val.spec,
            data.train.truth,
            data.sampler.factors,
            data.auxiliary,
            resumed=state is not None,
        )
        if state is None:
            self.progress = Progress(start=start_in_words(self.config, self.learner.model))
        else:
            self.progress = state.progress
            self.learner.restore(state.tensors, state.scaler, folder.path)
        self.steps = Steps(data, self.config, options, process, say)
        self._saved = time.monotonic()
        self._sets: dict[str, SetFigures] = {}

    @classmethod
    def open(
        cls,
        source: TrainingManifest,
        folder: RunFolder,
        options: RunOptions,
        process: Process,
        stop: StopSignal,
        say: Callable[[str], None],
    ) -> Trainer:
        """Check everything that can be checked before it is slow, then build the model or load its state."""
        config = folder.config
        if options.restart and process.main:
            folder.clear()
        process.barrier()
        state = folder.load()
        position = state and (state.progress.epoch, state.progress.step)
        if not process.agree((folder.is_locked(), folder.identity, position)):
            raise MineralError(
                f"the processes of this run do not see the same: give all of them the same options and manifests, and "
                f"a folder -o that all nodes share (here {folder.path.absolute()})"
            )
        if state is None:
            require_start(config)
        for line in images.warnings(source.manifest):
            say(line)
        finished = state is not None and bool(state.progress.reason)
        data = TrainingData.open(source, config, options, input_spec(config.model), say, check=not finished)
        return cls(source, data, folder, state, options, process, stop, say)

    def run(self, on_epoch: Listener) -> FitResult:
        """Train until the recipe's end; return at once if that was reached before."""
        start_peak_memory(self.process.device)
        self.say(self._headline())
        self._require_best()
        reporter = self._reporter()
        with self._tensorboard() as log:
            while not self.progress.reason:
                record = self._epoch(reporter)
                log(record)
                self.say(record.line(self.config.epochs))
                for line in sets_in_words(self._sets):
                    self.say(line)
                on_epoch(record)
        self._calibrate()
        self.say(str(self._result()))
        return self._result()

    def _calibrate(self) -> None:
        """Calibrate the best checkpoint on the validation split, unless an earlier sitting did."""
        model, contract = checkpoint.load_checkpoint(self.folder.path)
        if contract.is_calibrated:
            return
        logits = self._logits(model.to(self.process.device))
        try:
            self._in_main(lambda: self._save_calibrated(logits.numpy()))
        except DataError as error:
            self.say(f"Warning: the model is not calibrated: {error}")

    def _save_calibrated(self, logits: NDArray[np.float32]) -> None:
        rule = Rule("f1") if self.config.tune_thresholds else None
        words = f"validation split of {self.source.name}"
        calibrate_checkpoint(self.folder.path, logits, self._truth, words, rule=rule)

    def _epoch(self, reporter: Reporter) -> EpochRecord:
        start, epoch = time.perf_counter(), self.progress.epoch + 1
        lr, train_loss = self._train(epoch, reporter)
        if epoch == 1:
            self._save()  # a kill after the first checkpoint must find a state beside it
        try:
            scores, val_loss = self._validate()
        except (RunStopped, DataError):
            if self.process.world == 1:
                self._save()  # the epoch's steps are done
            raise
        mean_ap = mean_average_precision(scores, self._truth).mean
        self._sets = measure_sets(scores, self._truth, self.data.val_sets)
        seconds, memory = time.perf_counter() - start, peak_memory(self.process.device)
        record = EpochRecord(epoch, lr, train_loss, val_loss, mean_ap, seconds, memory)
        # The checkpoint before the state that speaks of it: a kill between the two repeats the epoch's validation.
        if self.progress.add(record, self.config):
            self._in_main(lambda: self._save_best(scores))
        self._save()
        return record

    # -- learning ------------------------------------------------------------------------------------------------

    def _train(self, epoch: int, reporter: Reporter) -> tuple[float, float]:
        """Do one epoch, or the rest of it; the last step's learning rate and the mean loss over the images."""
        self.learner.start_epoch(frozen=epoch <= self.config.freeze_epochs)
        self.data.train.set_epoch(epoch)
        plan, before = self.steps.plan(epoch), (epoch - 1) * self.steps.per_epoch
        loss_sum = torch.tensor(self._earlier_loss, dtype=torch.float64, device=self.process.device)
        batches = self.steps.load(plan[self.progress.step :])
        for number in reporter.steps(epoch, self.progress.step, self.progress.best_map, loss_sum):
            try:
                self._check_stop(number)
                step = next(batches)
            except (RunStopped, DataError) as error:
                # Saving needs all processes; they stop together, but do not fail together.
                if self.process.world == 1 or isinstance(error, RunStopped):
                    self._save_within_epoch(number, loss_sum)
                raise
            mix = self._mixes(before + number)
            loss_sum += self.learner.step(step[0], step[1], before + number, self._lr(before + number), mix=mix)
            self._require_finite(loss_sum, epoch, number)
            if number + 1 < len(plan) and self._is_time_to_save(number + 1):
                self._save_within_epoch(number + 1, loss_sum)
        total = self.process.total(float(loss_sum))[0]
        if not math.isfinite(total):
            raise self._not_finite("the loss", epoch, len(plan))
        self.progress.step, self.progress.loss_sum = len(plan), total
        return self._lr(before + len(plan) - 1), total / self.data.sampler.draws

    def _check_stop(self, step: int) -> None:
        """Raise `RunStopped` if a signal came, in all processes at the same step, whichever got it."""
        if self.process.world == 1:
            self.stop.check()
        elif self.process.device.type == "cpu" or step % _ASK_EVERY == 0:  # asking makes a GPU wait
            number = self.process.largest(self.stop.number or 0)
            if number:
                raise RunStopped(number)

    def _mixes(self, step: int) -> bool:
        """Whether mixup and CutMix are on in this step of the run."""
        return self.config.mixup + self.config.cutmix > 0 and step < _MIXED * self.config.epochs * self.steps.per_epoch

    def _lr(self, step: int) -> float:
        return self.config.lr * optim.lr_factor(self.config, step, self.steps.per_epoch)

    def _require_finite(self, loss_sum: torch.Tensor, epoch: int, number: int) -> None:
        """Stop at the step whose loss is not finite; on a GPU at the end of the epoch, for looking makes it wait."""
        if self.process.world == 1 and loss_sum.device.type == "cpu" and not math.isfinite(float(loss_sum)):
            raise self._not_finite("the loss", epoch, number + 1)

    def _not_finite(self, what: str, epoch: int, step: int) -> MineralError:
        so_far = (
            f", or continue from the best epoch so far in a new folder with --init {self.folder.path}"
            if self.progress.best_epoch
            else ""
        )
        return MineralError(
            f"{what} is not finite in epoch {epoch}, step {step} of {self.steps.per_epoch}: start again (--restart) "
            f"with a lower --lr, with --clip 1, or with --precision bf16 in place of fp16{so_far}"
        )

    @property
    def _earlier_loss(self) -> float:
        """The loss sum of the epoch's steps in an earlier sitting; one process holds it for all."""
        return self.progress.loss_sum if self.process.main else 0.0

    # -- validating ----------------------------------------------------------------------------------------------

    @property
    def _truth(self) -> NDArray[np.bool_]:
        return self.data.val.targets.bool().numpy()

    def _validate(self) -> tuple[NDArray[np.float32], float]:
        """Compute probabilities (N, L) of the validation split, the same in every process, and the mean loss."""
        logits = self._logits(self.learner.kept)
        if not torch.isfinite(logits).all():
            raise self._not_finite("an answer on the validation split", self.progress.epoch + 1, self.steps.per_epoch)
        device = self.process.device
        loss = self.learner.criterion(logits.to(device), self.data.val.targets.to(device))
        return logits.sigmoid().numpy(), float(loss)

    def _logits(self, model: MineralNet) -> torch.Tensor:
        """Compute logits (N, L) of the validation split; a signal ends it, of several processes at the next step."""
        return predict_logits(
            model,
            self.data.val,
            self.process,
            batch=self.config.batch,
            workers=self.steps.workers,
            check=self.stop.check if self.process.world == 1 else lambda: None,
        )

    # -- saving --------------------------------------------------------------------------------------------------

    def _save_best(self, scores: NDArray[np.float32]) -> None:
        contract = make_contract(
            self.config,
            self.data.val.spec,
            scores,
            self._truth,
            name=self.folder.path.resolve().name,
            dataset=f"validation split of {self.source.name}",
            facts=self._facts(),
        )
        checkpoint.save_checkpoint(self.folder.path, self.learner.kept, contract, **self.folder.identity)

    def _require_best(self) -> None:
        """Check the best checkpoint of a resumed run; write it again if its weights are still in the state.

        Raises:
            DataError: if it is damaged and only training again can replace it.
        """
        progress, path = self.progress, self.folder.path
        if not progress.best_epoch or self.folder.has_best():
            return
        if progress.best_epoch == progress.epoch and not progress.step:
            self.say(f"{path}: the checkpoint is damaged; it is written again from the saved state")
            scores, _ = self._validate()
            self._in_main(lambda: self._save_best(scores))
        elif progress.reason:
            raise DataError(
                f"{path}: the checkpoint of epoch {progress.best_epoch} is damaged, and the saved state is of epoch "
                f"{progress.epoch}: restore {checkpoint.WEIGHTS} and {checkpoint.CONFIG} from a backup, or train again "
                "with --restart"
            )
        else:
            self.say(
                f"Warning: {path}: the checkpoint of epoch {progress.best_epoch} is damaged; "
                "the best of the remaining epochs will replace it"
            )
            progress.best_epoch, progress.best_map = 0, -1.0

    def _facts(self) -> dict[str, Any]:
        return {
            "start": self.progress.start,
            "manifest": self.source.name,
            "manifest_sha256": self.source.sha256,
            "images": {"train": len(self.data.train), "val": len(self.data.val)},
            **({"sets": self._sets} if self._sets else {}),
            "epoch": self.progress.best_epoch,
            "weights": "moving average" if self.config.ema else "as trained",
            "processes": self.process.world,
            "device": self.process.device.type,
        }

    def _save(self) -> None:
        learner = self.learner
        self._in_main(lambda: self.folder.save(learner.tensors(), learner.scaler.state_dict(), self.progress))
        self._saved = time.monotonic()

    def _is_time_to_save(self, done: int) -> bool:
        """Whether to save within the epoch: every so many steps if that is set, else every few minutes."""
        if self.options.save_every:
            return done % self.options.save_every == 0
        due = time.monotonic() - self._saved >= 60 * self.options.save_minutes
        if self.process.world == 1:
            return due
        # Saving is done by all together, so the main process decides for all.
        return done % _ASK_EVERY == 0 and self.process.total(float(due and self.process.main))[0] > 0

    def _save_within_epoch(self, done: int, loss_sum: torch.Tensor) -> None:
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
        done = f"; resuming after epoch {self.progress.epoch}" if self.progress.history else ""
        done += f", step {self.progress.step}" if self.progress.step else ""
        return (
            f"{self.config.model.backbone}, {self.config.model.method}; "
            f"parameters (M): {', '.join(f'{part} {count / 1e6:.2f}' for part, count in parts)}; "
            f"{self.progress.start}; "
            f"{len(self.data.train)} images to train on, {len(self.data.val)} to validate on; "
            f"{self.process.world} x {self.process.device}{done}"
        )

    def _reporter(self) -> Reporter:
        count = self.data.sampler.draws, len(self.data.val)
        return Reporter(
            self.config,
            self.options,
            self.process,
            count,
            self.steps.per_epoch,
            self.say,
            lambda: suggest_few(self.config, count[0], self.process.device),
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

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Listener]:
        if not self.options.tensorboard or not self.process.main or self.progress.reason:
            yield ignore
            return
        board = TensorBoard(self.folder.path / TENSORBOARD, self.progress.epoch + 1)
        try:
            yield board.add
        finally:
            board.close()
