"""The recipe of a training run, and how it is run on this machine.

`TrainConfig` holds everything that changes the weights; it is stored with them, and a run is resumed only under an
equal one. `RunOptions` holds what may differ between two sittings of the same run. Nothing here imports torch, so that
a command can show the defaults at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from mineral_batch.errors import DataError, MineralError
from mineral_train.model.presets import ModelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mineral_train.data.augment import Augment

LossName = Literal["asymmetric", "focal", "bce", "hill", "entropy"]
PositiveWeight = Literal["none", "sqrt-inverse"]
Schedule = Literal["constant", "cosine"]
Best = Literal["map", "loss"]
Precision = Literal["fp32", "bf16", "fp16"]

#: What `init` calls the model that comes with the package.
STARTER = "starter"


class DoesNotFitError(MineralError):
    """A step of the training needs more memory than the GPU has."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that changes the weights. The defaults are the recipe of Wu et al. 2022, section 3.

    The paper states AdamW, learning rate 1e-5, batch 16, 50 epochs, RandAugment and the asymmetric loss. It does not
    state schedule, warm-up and weight decay: here constant, none, and AdamW's usual 0.01. It stops "by validation";
    here the epoch with the best validation mAP is kept, and `patience` ends the run earlier.

    Attributes:
        model: the network.
        pretrained: `hub` for timm's published weights of the backbone, `none`, or the path of a weight file.
        init: where all weights come from: a checkpoint folder, an exported ONNX file, or `starter`; empty for none.
        loss: which loss; `hill` and `entropy` are for images that name one of several minerals (see `losses`).
        positive_weight: `sqrt-inverse` multiplies the positive term of label k by sqrt(negatives_k / positives_k).
        positive_cap: largest such weight, 0 = no limit. Without one a label with three images of thousands weighs 30.
        repeat: images of labels rarer than this share are drawn more often, by the square root of the ratio (repeat
            factor sampling; Gupta et al. 2019, LVIS, section 4.3); 0 = every image once an epoch.
        mixup: probability that the images of a step are blended in pairs, with their labels (Zhang et al. 2018;
            Beta(0.4, 0.4)); off in the last tenth of the run, so that it ends on images as they are.
        cutmix: probability that a rectangle of each image of a step is another image's, and so is its share of the
            labels (CutMix, Yun et al. 2019); off in the last tenth, too. A step has one of the two at most.
        imply_parents: an image of a variety also gets its species and group, where they are labels: agate is quartz.
        soft_targets: a table of `mineral-batch predict`, whose probabilities are part of the targets (distillation);
            empty for none.
        soft_weight: their share; the labels have the rest.
        aux_column: a column of the manifests whose names, several joined by `;`, are learned beside the labels:
            rocks, other minerals, varieties. They teach the backbone and are dropped with the run (see `auxiliary`);
            empty for none.
        aux_weight: of their loss; that of the labels has 1.
        aux_least: names in fewer training images are left out.
        smoothing: label smoothing e: targets become `y (1 - e) + e / 2`.
        augment: timm's RandAugment policy for training images, empty for none (see `augment.Augment`).
        flip: probability of the mirror image.
        vertical_flip: probability of upside down.
        crop: smallest share of an image's area that a random crop keeps, 1 = the whole image, as in the paper.
        jitter: largest relative change of brightness and of contrast, each the same for all channels, so that the hue
            stays: color tells many minerals apart.
        train_size: height and width of training images where they are smaller than the model's input, 0 = as large
            (Touvron et al. 2019: objects look larger after a random crop, which a smaller training size makes good;
            a step costs less, too). For CNNs that pool.
        epochs: passes over the training split.
        batch: images of one optimizer step, over all processes and pieces.
        accumulate: pieces into which a process cuts its share of a batch, to fit its memory.
        lr: peak learning rate of the backbone's last layer.
        head_lr: the learning rate of everything after the backbone, as a multiple of `lr`.
        layer_decay: factor by which each lower layer of the backbone learns slower; 1 = all alike.
        weight_decay: AdamW's, on matrices only: not on norms, biases and embeddings.
        schedule: of the learning rate after the warm-up.
        warmup_epochs: over these the learning rate rises linearly from 0.
        min_lr: fraction of `lr` where `cosine` ends.
        clip: largest global norm of the gradient, 0 = no limit.
        freeze_epochs: in these first epochs the backbone is frozen, with its BatchNorm statistics and dropout.
        freeze_stages: the stem and this many of the backbone's lowest stages (blocks of a transformer) stay frozen
            with their BatchNorm statistics: on small data little is lost, and a step costs half the time.
        freeze_norm: the backbone's BatchNorm layers keep the statistics of their pretraining, because those of a small
            batch estimate them poorly; their scales and shifts still learn.
        ema: decay of the exponential moving average of the weights that is validated and kept, 0 = none.
        best: how the epoch to keep is chosen on the validation split: `map`, or `loss`, which is steadier if many
            labels have one or two validation images, whose ranks decide the mAP by chance.
        patience: stop after this many epochs without a better one, 0 = never.
        precision: of the matrix products; weights, normalization and loss stay float32.
        tune_thresholds: put the validation split's best thresholds into the contract, instead of 0.5.
        seed: of everything random.
    """

    model: ModelConfig
    pretrained: str = "hub"
    init: str = ""
    loss: LossName = "asymmetric"
    positive_weight: PositiveWeight = "none"
    positive_cap: float = 0.0
    repeat: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    imply_parents: bool = False
    soft_targets: str = ""
    soft_weight: float = 0.3
    aux_column: str = ""
    aux_weight: float = 0.4
    aux_least: int = 8
    smoothing: float = 0.0
    augment: str = "rand-m9-mstd0.5"
    flip: float = 0.5
    vertical_flip: float = 0.0
    crop: float = 1.0
    jitter: float = 0.0
    train_size: int = 0
    epochs: int = 50
    batch: int = 16
    accumulate: int = 1
    lr: float = 1e-5
    head_lr: float = 1.0
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    min_lr: float = 0.0
    clip: float = 0.0
    freeze_epochs: int = 0
    freeze_stages: int = 0
    freeze_norm: bool = False
    ema: float = 0.0
    best: Best = "map"
    patience: int = 0
    precision: Precision = "fp32"
    tune_thresholds: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _require_one_of("loss", self.loss, get_args(LossName))
        _require_one_of("positive-weight", self.positive_weight, get_args(PositiveWeight))
        _require_one_of("schedule", self.schedule, get_args(Schedule))
        _require_one_of("best", self.best, get_args(Best))
        _require_one_of("precision", self.precision, get_args(Precision))
        for name in ("epochs", "batch", "accumulate", "aux_least"):
            _require_range(name, getattr(self, name), 1)
        for name in ("weight_decay", "warmup_epochs", "clip", "freeze_epochs", "freeze_stages", "patience", "seed"):
            _require_range(name, getattr(self, name), 0)
        for name in ("positive_cap", "train_size"):
            _require_range(name, getattr(self, name), 0)
        for name in ("lr", "head_lr", "layer_decay"):
            _require(getattr(self, name) > 0, f"--{_option(name)} must be above 0, got {getattr(self, name)}")
        _require_range("layer_decay", self.layer_decay, 0, 1)
        _require_range("min_lr", self.min_lr, 0, 1)
        for name in ("flip", "vertical_flip", "mixup", "cutmix", "soft_weight", "repeat", "jitter"):
            _require_range(name, getattr(self, name), 0, 1)
        _require_range("aux_weight", self.aux_weight, 0)
        _require(
            self.mixup + self.cutmix <= 1,
            f"a step has mixup or CutMix: the two shares add up to at most 1, got {self.mixup} and {self.cutmix}",
        )
        _require_training_size(self.train_size, self.model)
        _require(0 < self.crop <= 1, f"--crop is a share of the area, above 0 and at most 1, got {self.crop}")
        _require(
            0 <= self.ema < 1,
            f"--ema is a decay of at least 0 and below 1, for example 0.999; got {self.ema}",
        )
        _require(0 <= self.smoothing < 1, f"--smoothing must be at least 0 and below 1, got {self.smoothing}")
        _require(
            self.warmup_epochs < self.epochs,
            f"--warmup-epochs {self.warmup_epochs} must be below --epochs {self.epochs}",
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to a JSON object that `from_json` reads back to an equal recipe."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "model": self.model.to_json()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_json` wrote.

        Raises:
            DataError: when the record has other fields than this release knows.
        """
        known = {f.name for f in fields(cls)}
        if set(record) != known:
            raise DataError(
                f"the recipe has other fields than this release knows: {sorted(set(record) ^ known)}; "
                "use the release that wrote it"
            )
        return cls(**{**record, "model": ModelConfig.from_json(record["model"])})

    @property
    def augmentation(self) -> Augment | None:
        """How to vary training images; None for not at all."""
        if self.crop == 1 and not (self.augment or self.flip or self.vertical_flip or self.jitter):
            return None
        from mineral_train.data.augment import Augment

        crop = None if self.crop == 1 else (self.crop, 1.0)
        return Augment(self.augment, self.flip, crop, self.jitter, self.vertical_flip)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """List `option: theirs -> ours` for every field in which the recorded recipe `other` differs."""
        mine = _flat(self.to_json())
        # What an earlier release did not know, it did as the default says.
        defaults = {f.name: f.default for f in fields(self) if f.name != "model"}
        theirs = defaults | _flat(other)
        return [
            f"{_option(name)}: {theirs.get(name)!r} -> {mine.get(name)!r}"
            for name in dict.fromkeys([*mine, *theirs])
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class RunOptions:
    """How a run is carried out on this machine; may change when it is resumed.

    Attributes:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: processes that decode images; None chooses by the number of cores.
        cache: keep decoded images in shared memory (see `dataset.PhotoDataset`).
        compile: compile the model with `torch.compile`.
        sync_batch_norm: share BatchNorm's statistics among processes (CUDA, several processes).
        deterministic: the same bits each time, so that a resumed run equals an uninterrupted one bit for bit: only
            deterministic kernels on a GPU, one thread on a CPU.
        skip_damaged: go on without images that cannot be decoded, saying which.
        tensorboard: write TensorBoard logs.
        save_every: also save the state after every so many optimizer steps; 0 = by `save_minutes`.
        save_minutes: time between two saves within an epoch.
        restart: delete what an earlier run left in the folder and start again.
        quiet: no progress bar.
    """

    device: str = "auto"
    workers: int | None = None
    cache: bool = False
    compile: bool = False
    sync_batch_norm: bool = False
    deterministic: bool = False
    skip_damaged: bool = False
    tensorboard: bool = False
    save_every: int = 0
    save_minutes: float = 5.0
    restart: bool = False
    quiet: bool = False


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Nested objects as `outer.inner`; tuples as lists, because JSON has no tuples."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": deep for inner, deep in _flat(value).items()})
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _option(name: str) -> str:
    return name.replace("_", "-")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MineralError(message)


def _require_training_size(size: int, model: ModelConfig) -> None:
    _require(
        size == 0 or (model.method == "pool" and 32 <= size <= model.image_size),
        f"train-size must be 32 to the image size, {model.image_size}, and works with --method pool only; got {size} "
        f"with --method {model.method}",
    )


def _require_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"--{name} must be one of {', '.join(allowed)}, got {value!r}")


def _require_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    limits = f"at least {low}" if high == float("inf") else f"{low} to {high}"
    _require(low <= value <= high, f"--{_option(name)} must be {limits}, got {value}")
