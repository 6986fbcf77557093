"""The training loop: epochs over the training split, validation after each, and a run that can stop anywhere.

A run is a folder: the best checkpoint so far (`model.safetensors`, `config.json`), `log.csv`, and under `last/`
the state from which the same command goes on. Everything random is a function of (seed, epoch, step, process), not of
what was drawn before, so that a run which was killed and resumed ends with the weights of one which was not, bit for
bit.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from mineral_batch.contract import Measured, ModelContract
from mineral_batch.errors import DataError, MineralError
from mineral_batch.metrics import EQUATION_6, MeanAP, mean_average_precision
from mineral_train import checkpoint, optim
from mineral_train.config import RunOptions, TrainConfig
from mineral_train.dataset import PhotoDataset
from mineral_train.distributed import Process, join, plan_epoch
from mineral_train.evaluate import make_loader, predict_logits, samples, to_device
from mineral_train.logs import (
    EpochRecord,
    TensorBoard,
    peak_memory,
    peak_memory_name,
    start_peak_memory,
    write_log,
)
from mineral_train.losses import make_loss
from mineral_train.manifest import Manifest, read_manifest
from mineral_train.model import MineralNet, build_model, input_spec, parameters_by_part
from mineral_train.normalise import Normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import nn

    from mineral_train.distributed import Piece

STATE = Path("last") / "state.safetensors"
LOG = "log.csv"
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SHOW_EVERY = 10  # steps: reading the loss from a GPU makes it wait


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
        loss_sum: sum of the losses of the pictures in those steps.
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


def fit(
    config: TrainConfig,
    manifest: str | Path,
    run: str | Path,
    options: RunOptions | None = None,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
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
        DataError: when the manifest, a picture, or the run's folder is not as it must be.
        MineralError: when the recipe differs from the one that the run was begun with, or the loss is not finite.
    """
    options = options or RunOptions()
    with join(options.device) as process, _deterministic(options.deterministic):
        data = _Data.read(Path(manifest), config, options)
        trainer = Trainer(config, data, Path(run), options, process)
        quiet = not process.main
        return trainer.run(
            _nothing if quiet or on_epoch is None else on_epoch, _nothing if quiet or say is None else say
        )


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
            f"{path}: no picture of the split {split!r} has a label; "
            "training needs the splits train and val: make them with `mineral-train data`"
        )


class Trainer:
    """One run in one process: the model and all that changes while it learns."""

    def __init__(self, config: TrainConfig, data: _Data, run: Path, options: RunOptions, process: Process) -> None:
        self.config, self.data, self.folder, self.options, self.process = config, data, run, options, process
        self.progress = Progress()
        self.identity = {"train": config.to_json(), "manifest_sha256": data.sha256}
        state = self._begin()
        self.model = _initial_model(config, fresh=state is None)
        self.model.to(process.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.normalise = Normalise(data.train.spec).to(process.device)
        self.criterion = _criterion(config, data.train.targets, process.device)
        self.learnable = [p for p in self.model.backbone.parameters() if p.requires_grad]
        self.optimizer = optim.make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=config.precision == "fp16")
        self.ema = optim.make_ema(self.model, config.ema)
        if state is None:
            self.progress.start = str(self.model.loaded)
        else:
            self._restore(*state)
        if options.compile:
            self.model.compile()
        self._frozen: bool | None = None
        self._parallel: nn.Module = self.model

    # -- the run ---------------------------------------------------------------------------------------------------

    def run(self, on_epoch: Callable[[EpochRecord], None], say: Callable[[str], None]) -> FitResult:
        """Train until the recipe's end; at once back when that has been reached before."""
        start_peak_memory(self.process.device)
        say(self._headline())
        with self._tensorboard() as log:
            while not self.progress.reason:
                record = self._epoch()
                log(record)
                say(record.line(self.config.epochs))
                on_epoch(record)
        result = self._result()
        say(str(result))
        return result

    def _headline(self) -> str:
        parts = ", ".join(f"{part} {count / 1e6:.2f}" for part, count in parameters_by_part(self.model).items())
        done = f"; going on after epoch {self.progress.epoch}" if self.progress.history else ""
        return (
            f"{self.config.model.backbone}, {self.config.model.method}; parameters (M): {parts}; "
            f"{self.progress.start}; "
            f"{len(self.data.train)} pictures to train on, {len(self.data.val)} to validate on; "
            f"{self.process.world} x {self.process.device}{done}"
        )

    def _epoch(self) -> EpochRecord:
        start, epoch = time.perf_counter(), self.progress.epoch + 1
        lr, train_loss = self._train(epoch)
        logits, val_loss = self._validate()
        scores = logits.sigmoid().numpy()
        measured = mean_average_precision(scores, self._truth)
        memory = peak_memory(self.process.device)
        record = EpochRecord(epoch, lr, train_loss, val_loss, measured.mean, time.perf_counter() - start, memory)
        self._finish_epoch(record, measured, scores)
        return record

    def _finish_epoch(self, record: EpochRecord, measured: MeanAP, scores: NDArray[np.float32]) -> None:
        """Keep the weights if they are the best so far, and only then save the state that says so."""
        progress = self.progress
        progress.epoch, progress.step, progress.loss_sum = record.epoch, 0, 0.0
        progress.history.append(record)
        if record.val_map > progress.best_map:
            progress.best_epoch, progress.best_map = record.epoch, record.val_map
            self._in_main(lambda: self._save_best(measured, scores))
        progress.reason = self._reason()
        self._save()

    def _reason(self) -> str:
        progress, config = self.progress, self.config
        if config.patience and progress.epoch - progress.best_epoch >= config.patience:
            return f"no better validation mAP for {config.patience} epochs"
        return f"all {config.epochs} epochs are done" if progress.epoch == config.epochs else ""

    def _result(self) -> FitResult:
        progress = self.progress
        return FitResult(
            best_epoch=progress.best_epoch,
            best_map=progress.best_map,
            epochs=progress.epoch,
            reason=progress.reason,
            parameters=sum(p.numel() for p in self.model.parameters()),
            peak_memory_mib=max(record.peak_memory_mib for record in progress.history),
            peak_memory_name=peak_memory_name(self.process.device),
        )

    # -- learning --------------------------------------------------------------------------------------------------

    def _train(self, epoch: int) -> tuple[float, float]:
        """One epoch, or the rest of it; the last step's learning rate and the mean loss over the pictures."""
        self._set_frozen(epoch <= self.config.freeze_epochs)
        self.data.train.set_epoch(epoch)
        steps = self._plan(epoch)
        done = self.progress.step
        loss_sum = torch.tensor(
            self.progress.loss_sum * self.process.main, dtype=torch.float64, device=self.process.device
        )
        batches = self._batches([piece.indices for step in steps[done:] for piece in step])
        lr = 0.0
        for number, step in self._bar(epoch, steps, loss_sum):
            lr = self._set_lr(epoch, number, len(steps))
            loss_sum += self._step(step, batches, (epoch, number))
            self._maybe_save(number + 1, len(steps), loss_sum)
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

    def _step(
        self,
        pieces: list[Piece],
        batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
        position: tuple[int, int],
    ) -> torch.Tensor:
        """One optimiser step; the sum of the losses of this process's pictures, float64."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.process.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number, piece in enumerate(pieces):
            pixels, targets = next(batches)
            if number == 0:  # after loading, which may draw random numbers of its own
                _seed(self.config.seed, *position, self.process.rank)
            with self._no_sync(last=number == len(pieces) - 1):
                loss = self._loss(pixels, targets)
                self.scaler.scale(loss * piece.weight).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach() * len(piece.indices) * (piece.weight > 0)
        self._update(position)
        return loss_sum

    def _loss(self, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        dtype = _AUTOCAST.get(self.config.precision, torch.float32)
        normalised = self.normalise(pixels)
        with torch.autocast(self.process.device.type, dtype, enabled=self.config.precision != "fp32"):
            logits = self._parallel(normalised)
        smoothing = self.config.smoothing
        loss: torch.Tensor = self.criterion(logits.float(), targets * (1 - smoothing) + smoothing / 2)
        return loss

    def _update(self, position: tuple[int, int]) -> None:
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            epoch, number = position
            self.ema.update(self.model, step=(epoch - 1) * self._steps_per_epoch + number + 1)

    def _set_lr(self, epoch: int, number: int, steps: int) -> float:
        factor = optim.lr_factor(self.config, (epoch - 1) * steps + number, steps)
        return optim.set_lr(self.optimizer, self.config, factor)

    def _mean_loss(self, loss_sum: torch.Tensor, epoch: int) -> float:
        mean = self.process.total(float(loss_sum))[0] / len(self.data.train)
        if not math.isfinite(mean):
            raise MineralError(
                f"the loss is not finite in epoch {epoch}: begin again (--restart) with a lower --lr, "
                "or with --clip 1, or with --precision bf16 in place of fp16"
            )
        return mean

    def _set_frozen(self, frozen: bool) -> None:
        """Freeze or free the backbone; what averages gradients must be made anew, for it counts those that learn."""
        if frozen != self._frozen:
            for parameter in self.learnable:
                parameter.requires_grad_(not frozen)
            self._parallel = self.process.wrap(self.model, sync_batch_norm=self.options.sync_batch_norm)
            self._frozen = frozen
        optim.train_mode(self.model, frozen)

    def _no_sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Processes average their gradients once per step, in the last piece."""
        if last or self._parallel is self.model:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self._parallel.no_sync()  # type: ignore[operator]
        return context

    def _batches(self, batches: list[list[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = make_loader(self.data.train, batches, self._workers, self.process.device)
        for pixels, targets, _ in samples(loader):
            yield to_device(pixels, self.process.device), targets.to(self.process.device, non_blocking=True)

    # -- validating ------------------------------------------------------------------------------------------------

    @property
    def _kept(self) -> MineralNet:
        """The model whose weights are validated and saved."""
        kept: MineralNet = self.model if self.ema is None else self.ema.module
        return kept

    @property
    def _truth(self) -> NDArray[np.bool_]:
        return self.data.val.targets.bool().numpy()

    def _validate(self) -> tuple[torch.Tensor, float]:
        """Logits (N, L) of the validation split in every process, and the mean loss."""
        logits = predict_logits(self._kept, self.data.val, self.process, batch=self.config.batch, workers=self._workers)
        device = self.process.device
        return logits, float(self.criterion(logits.to(device), self.data.val.targets.to(device)))

    # -- keeping ---------------------------------------------------------------------------------------------------

    def _save_best(self, measured: MeanAP, scores: NDArray[np.float32]) -> None:
        contract = self._contract(measured, scores)
        checkpoint.save_checkpoint(self.folder, self._kept, contract, **self.identity)

    def _contract(self, measured: MeanAP, scores: NDArray[np.float32]) -> ModelContract:
        labels = self.config.model.labels
        return ModelContract(
            labels=labels,
            thresholds=_thresholds(self.config, scores, self._truth),
            input=self.data.val.spec,
            name=self.folder.resolve().name,
            provenance=self._provenance(),
            measured=_measured(measured, labels, f"validation split of {self.data.name}", len(scores)),
        )

    def _provenance(self) -> dict[str, Any]:
        from mineral_train.backbones import import_timm

        recipe = self.config.to_json()
        recipe["model"] = {name: value for name, value in recipe["model"].items() if name != "labels"}
        return {
            "recipe": recipe,
            "manifest": self.data.name,
            "manifest_sha256": self.data.sha256,
            "images": {"train": len(self.data.train), "val": len(self.data.val)},
            "start": f"checkpoint {self.config.init}" if self.config.init else self.progress.start,
            "epoch": self.progress.best_epoch,
            "weights": "moving average" if self.ema else "as trained",
            "processes": self.process.world,
            "device": self.process.device.type,
            "versions": {"torch": torch.__version__, "timm": import_timm().__version__},
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        }

    def _maybe_save(self, done: int, steps: int, loss_sum: torch.Tensor) -> None:
        every = self.options.save_every
        if every and done % every == 0 and done < steps:
            self.progress.step = done
            self.progress.loss_sum = self.process.total(float(loss_sum))[0]
            self._save()

    def _save(self) -> None:
        record = {**self.identity, "progress": asdict(self.progress), "scaler": self.scaler.state_dict()}
        self._in_main(lambda: checkpoint.save_state(self.folder / STATE, self._tensors(), record))
        self._in_main(lambda: write_log(self.folder / LOG, self.progress.history))

    def _tensors(self) -> dict[str, torch.Tensor]:
        parts = {"model": self.model.state_dict(), "optimizer": optim.named_state(self.model, self.optimizer)}
        if self.ema is not None:
            parts["ema"] = self.ema.module.state_dict()
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _restore(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
        for name, tensor in tensors.items():
            part, _, inner = name.partition("/")
            parts[part][inner] = tensor
        checkpoint.load_weights(self.model, parts["model"], self.folder / STATE)
        optim.restore_state(self.model, self.optimizer, parts["optimizer"])
        if self.ema is not None:
            checkpoint.load_weights(self.ema.module, parts["ema"], self.folder / STATE)
        self.scaler.load_state_dict(record["scaler"])
        self.progress = Progress.from_json(record["progress"])

    def _begin(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The state to go on from, None for a new run; refuses to go on under another recipe."""
        if self.options.restart:
            self._in_main(lambda: _clear(self.folder))
        state = self.folder / STATE
        if state.exists():
            tensors, record = checkpoint.load_state(state)
            self._require_same(record)
            return tensors, record
        if (self.folder / checkpoint.CONFIG).exists():
            raise DataError(
                f"{self.folder} has a checkpoint but no {STATE.as_posix()} to go on from: give another -o, or --restart"
            )
        self.process.barrier()
        return None

    def _require_same(self, record: dict[str, Any]) -> None:
        differences = self.config.differences(record["train"])
        if record["manifest_sha256"] != self.data.sha256:
            differences.append("the manifest's content")
        if differences:
            raise MineralError(
                f"{self.folder} was begun with another recipe ({'; '.join(differences)}): "
                "go on with the same options, give another -o, or begin again with --restart"
            )

    # -- small things ----------------------------------------------------------------------------------------------

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(len(self.data.train) / self.config.batch)

    @property
    def _workers(self) -> int:
        if self.options.workers is not None:
            return self.options.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        # On a CPU the model needs the cores itself.
        return min(8, cores) if self.process.device.type == "cuda" else min(2, cores - 1)

    def _in_main(self, action: Callable[[], None]) -> None:
        """Run `action` in the main process while the others wait for it."""
        if self.process.main:
            action()
        self.process.barrier()

    def _bar(self, epoch: int, steps: list[list[Piece]], loss_sum: torch.Tensor) -> Iterator[tuple[int, list[Piece]]]:
        """The steps that are left, with a bar that shows the loss so far and the best mAP."""
        done, progress = self.progress.step, self.progress
        hidden = self.options.quiet or not self.process.main
        best = f", best mAP {100 * progress.best_map:.2f} (epoch {progress.best_epoch})" if progress.best_epoch else ""
        with tqdm(total=len(steps), initial=done, disable=hidden, leave=False, unit="step") as bar:
            bar.set_description(f"epoch {epoch}/{self.config.epochs}{best}")
            for number in range(done, len(steps)):
                yield number, steps[number]
                bar.update()
                if not hidden and (number + 1) % _SHOW_EVERY == 0:
                    seen = min((number + 1) * self.config.batch, len(self.data.train)) / self.process.world
                    bar.set_postfix(loss=f"{float(loss_sum) / seen:.4f}")

    @contextlib.contextmanager
    def _tensorboard(self) -> Iterator[Callable[[EpochRecord], None]]:
        if not (self.options.tensorboard and self.process.main):
            yield lambda _: None
            return
        board = TensorBoard(self.folder / "tensorboard", self.progress.epoch + 1)
        try:
            yield board.add
        finally:
            board.close()


def _initial_model(config: TrainConfig, *, fresh: bool) -> MineralNet:
    """The model as the run begins; a resumed one needs no pretrained weights, for it has its own."""
    if not fresh or config.init:
        pretrained: bool | Path = False
    else:
        pretrained = config.pretrained == "hub" or (config.pretrained != "none" and Path(config.pretrained))
    model = build_model(config.model, pretrained=pretrained, seed=config.seed)
    if fresh and config.init:
        tensors, _ = checkpoint.read_tensors(Path(config.init) / checkpoint.WEIGHTS)
        checkpoint.load_weights(model, tensors, Path(config.init))
    return model


def _criterion(config: TrainConfig, targets: torch.Tensor, device: torch.device) -> nn.Module:
    loss = make_loss(config.loss).to(device)
    if config.positive_weight == "sqrt-inverse":
        present = targets.sum(dim=0)
        # A label that no training picture has gets no weight of its own: its positive term never occurs.
        weight = ((len(targets) - present) / present.clamp(min=1)).sqrt().where(present > 0, 1.0)
        loss.positive = loss.positive * weight.to(device)
    return loss


def _thresholds(config: TrainConfig, scores: NDArray[np.float32], truth: NDArray[np.bool_]) -> tuple[float, ...]:
    if not config.tune_thresholds:
        return (0.5,) * truth.shape[1]
    from mineral_batch.metrics import tune_thresholds

    return tuple(tune_thresholds(scores, truth).tolist())


def _measured(measured: MeanAP, labels: tuple[str, ...], dataset: str, images: int) -> Measured:
    ap = {
        label: None if math.isnan(value) else float(value)
        for label, value in zip(labels, measured.per_label, strict=True)
    }
    support = {label: int(count) for label, count in zip(labels, measured.support, strict=True)}
    return Measured(measured.mean, EQUATION_6, dataset, images, ap, support)


def _seed(*position: int) -> None:
    """Seed torch's generators, on all devices, for one place in the run."""
    torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _clear(run: Path) -> None:
    """Remove what a run wrote, and nothing else that lies in its folder."""
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, LOG):
        (run / name).unlink(missing_ok=True)
    for name in (STATE.parent.name, "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)


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
