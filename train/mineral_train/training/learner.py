"""The model, its loss, its optimizer and its moving average, one optimizer step at a time."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mineral_batch.errors import MineralError
from mineral_train.model.normalize import Normalize
from mineral_train.training import checkpoint, optim
from mineral_train.training.auxiliary import WithAuxiliary
from mineral_train.training.distributed import share_batch_norm
from mineral_train.training.initial import initial_model
from mineral_train.training.losses import make_loss
from mineral_train.training.mixing import mixed

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from mineral_batch.model.contract import InputSpec
    from mineral_train.model.network import MineralNet
    from mineral_train.training.config import RunOptions, TrainConfig
    from mineral_train.training.distributed import MicroBatch, Process

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Learner:
    """One process's model and everything that changes while it learns.

    Args:
        config: the recipe.
        options: of the run.
        process: this one.
        spec: the model's input.
        targets: (N, L) float32 of the training split, for the weights of rare labels.
        factors: (N,) how often each of its images is drawn.
        auxiliary: (N, A) float32, the targets of the auxiliary names; None without any.
        resumed: whether `restore` follows, so that no pretrained weights are needed.

    Attributes:
        model: learns.
        kept: what is validated and saved: the model, or its moving average.
    """

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        process: Process,
        spec: InputSpec,
        targets: torch.Tensor,
        factors: NDArray[np.float64],
        auxiliary: torch.Tensor | None = None,
        *,
        resumed: bool,
    ) -> None:
        _require_device_for(config.precision, process.device)
        self.config, self.options, self.process = config, options, process
        self.model = initial_model(config, resumed=resumed).to(process.device)
        # Convolutions train 1.5 times faster so on a CPU, and in half precision on a GPU; a ViT does not mind.
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if options.sync_batch_norm:
            _share_batch_norm(self.model, process)
        self.normalize = Normalize(spec).to(process.device)
        self.criterion = _criterion(config, targets, factors, process.device)
        self.optimizer = optim.make_optimizer(self.model, config)
        # What learns: the model, or the model with a second head, which is not kept.
        self.whole: nn.Module = self.model
        if auxiliary is not None:
            whole = WithAuxiliary(self.model, auxiliary, torch.from_numpy(factors).float()).to(process.device)
            optim.add_layer(self.optimizer, whole.auxiliary, config)
            self.whole, self._second = whole, _criterion(config, auxiliary, factors, process.device)
        self.scaler = torch.amp.GradScaler(process.device.type, enabled=config.precision == "fp16")
        self.ema = optim.make_ema(self.model, config.ema)
        optim.freeze_stages(self.model.backbone, config.freeze_stages)
        _require_statistics(self.model, config, options, process)
        self._norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm)]
        self._backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        self._frozen: bool | None = None
        self._parallel: nn.Module = self.whole
        if options.compile:
            self.whole.compile()

    @property
    def kept(self) -> MineralNet:
        """The model, or its moving average if the recipe has one."""
        kept: MineralNet = self.model if self.ema is None else self.ema.module
        return kept

    def start_epoch(self, *, frozen: bool) -> None:
        """Set training mode, but evaluation mode for what is frozen: the whole backbone or its lowest stages.

        Evaluation mode also freezes BatchNorm statistics and switches stochastic depth off.
        """
        if frozen != self._frozen:
            for parameter in self._backbone:
                parameter.requires_grad_(not frozen)
            # DistributedDataParallel counts the parameters that learn, so it is made again.
            self._parallel = self.process.wrap(self.whole)
            self._frozen = frozen
        optim.train_what_learns(self.whole)
        if self.config.freeze_norm:
            optim.freeze_statistics(self.model.backbone)

    def step(
        self,
        pieces: list[MicroBatch],
        batches: list[tuple[torch.Tensor, torch.Tensor]],
        number: int,
        lr: float,
        *,
        mix: bool = False,
    ) -> torch.Tensor:
        """Do one optimizer step.

        Args:
            pieces: this process's share of the batch.
            batches: for each piece its pixels (n, 3, H, W) uint8 and targets (n, L + A), on the device.
            number: of the step in the whole run, from 0. Dropout depends on it and the seed alone.
            lr: multiplied by each group's own factor.
            mix: whether mixup and CutMix are on.

        Returns:
            The sum of the losses of this process's images, float64, on the device.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.process.device)
        optim.set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        _seed(self.config.seed, number, self.process.rank)
        for piece, batch in zip(pieces, batches, strict=True):
            pixels, targets = mixed(*batch, self.config.mixup, self.config.cutmix) if mix else batch
            loss = self._learn_from(pixels, targets, piece.weight, last=piece is pieces[-1])
            loss_sum += loss * len(piece.indices) * (piece.weight > 0)
        self._update(number)
        return loss_sum

    def _learn_from(self, pixels: torch.Tensor, targets: torch.Tensor, weight: float, *, last: bool) -> torch.Tensor:
        """Add the gradient of one micro-batch; returns its mean loss. Processes average after the last one only."""
        with contextlib.nullcontext() if last else self._no_sync():
            loss = self._loss(pixels, targets) if len(pixels) > 1 else self._loss_of_one(pixels, targets)
            self.scaler.scale(loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        dtype = _AUTOCAST.get(self.config.precision, torch.float32)
        normalized = self.normalize(pixels)
        with torch.autocast(self.process.device.type, dtype, enabled=self.config.precision != "fp32"):
            logits = self._parallel(normalized)
        smoothing, own = self.config.smoothing, len(self.config.model.labels)
        logits, targets = logits.float(), targets * (1 - smoothing) + smoothing / 2
        loss: torch.Tensor = self.criterion(logits[:, :own], targets[:, :own])
        if self.whole is not self.model:
            loss = loss + self.config.aux_weight * self._second(logits[:, own:], targets[:, own:])
        return loss

    def _loss_of_one(self, pixels: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Compute the loss of a single image, normalized with the running statistics: one image has none of its own.

        In the last batch of an epoch, or for a process that has no image left in it.
        """
        active = [norm for norm in self._norms if norm.training and not self.options.sync_batch_norm]
        for norm in active:
            norm.eval()
        try:
            return self._loss(pixels, targets)
        finally:
            for norm in active:
                norm.train()

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if self._parallel is self.whole:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[None] = self._parallel.no_sync()  # type: ignore[operator]
        return context

    def _update(self, number: int) -> None:
        if self.config.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.whole.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model, step=number + 1)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Collect all tensors that a resumed run needs, as `part/name`."""
        parts = {
            "model": self.whole.state_dict(),
            "optimizer": optim.named_state(self.whole, self.optimizer),
            "ema": {} if self.ema is None else self.ema.module.state_dict(),
        }
        return {f"{part}/{name}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def restore(self, tensors: dict[str, torch.Tensor], scaler: dict[str, Any], source: Path) -> None:
        """Restore what `tensors` and `scaler.state_dict` returned.

        Raises:
            DataError: if they belong to another model.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}, "ema": {}}
        for name, tensor in tensors.items():
            part, _, inner = name.partition("/")
            parts[part][inner] = tensor
        checkpoint.load_weights(self.whole, parts["model"], source)
        optim.restore_state(self.whole, self.optimizer, parts["optimizer"])
        if self.ema is not None:
            checkpoint.load_weights(self.ema.module, parts["ema"], source)
        self.scaler.load_state_dict(scaler)


def _share_batch_norm(model: nn.Module, process: Process) -> None:
    if process.device.type != "cuda":
        raise MineralError("--sync-bn works on GPUs only: leave it out on the CPU")
    if process.world > 1:
        share_batch_norm(model)


def _require_statistics(model: MineralNet, config: TrainConfig, options: RunOptions, process: Process) -> None:
    """Refuse a run in which BatchNorm would see one image at a time in every step.

    Raises:
        MineralError: saying what to change.
    """
    alone = config.batch <= process.world * config.accumulate and not options.sync_batch_norm
    frozen = {id(module) for module in model.backbone.modules()} if config.freeze_norm else set()
    learns = any(isinstance(module, _BatchNorm) and id(module) not in frozen for module in model.modules())
    if alone and learns:
        raise MineralError(
            f"--batch {config.batch} leaves each of {process.world} x {config.accumulate} micro-batches one image, "
            "too few for BatchNorm: use a larger --batch, a smaller --accumulate, or --freeze-norm"
        )


def _criterion(
    config: TrainConfig, targets: torch.Tensor, factors: NDArray[np.float64], device: torch.device
) -> nn.Module:
    loss = make_loss(config.loss).to(device)
    if config.positive_weight == "sqrt-inverse":
        weights = positive_weights(targets, torch.from_numpy(factors).float())
        if config.positive_cap:
            weights = weights.clamp(max=config.positive_cap)
        loss.positive = loss.positive * weights.to(device)
    return loss


def positive_weights(targets: torch.Tensor, factors: torch.Tensor | None = None) -> torch.Tensor:
    """Compute sqrt(negatives / positives) per label: targets (N, L) of 0 and 1 to (L,) float32.

    The square root, because the full ratio lets a label with five images of a thousand outweigh all others. A label
    that is in no image gets 1: its positive term never occurs.

    Args:
        targets: of the training split.
        factors: (N,) how often each image is drawn; None for once.
    """
    drawn = targets if factors is None else targets * factors[:, None]
    total = len(targets) if factors is None else float(factors.sum())
    present = drawn.sum(dim=0)
    return ((total - present) / present.clamp(min=1)).sqrt().where(present > 0, 1.0)


def _require_device_for(precision: str, device: torch.device) -> None:
    if precision == "fp16" and device.type != "cuda":
        raise MineralError("--precision fp16 needs a GPU: use bf16 or fp32 on the CPU")


def _seed(*position: int) -> None:
    """Seed torch's generators, on all devices, for one place in the run."""
    torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))
