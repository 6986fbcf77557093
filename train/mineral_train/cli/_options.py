"""The options that the commands which train have in common. Their defaults are the recipe's own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mineral_batch.minerals import MINERALS
from mineral_train.data.manifest import read_labels
from mineral_train.model.presets import Head, ModelConfig, Projection
from mineral_train.training import config as recipes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mineral_train.training.config import RunOptions, TrainConfig

    Command = Callable[..., Any]
    Decorator = Callable[[Command], Command]

EXIT_INTERRUPTED = 130

_DEFAULTS = {f.name: f.default for f in fields(recipes.TrainConfig)}
_MODEL_FIELDS = {f.name for f in fields(ModelConfig)} - {"labels", "backbone"}
_RUN_FIELDS = {f.name for f in fields(recipes.RunOptions)}


def group(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, listed by `--help` in the given order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def recipe(flag: str, text: str, choices: Any = None) -> Decorator:
    """An option that sets one field of the recipe."""
    default = _DEFAULTS[flag.removeprefix("--").replace("-", "_")]
    kind = click.Choice(get_args(choices)) if choices else type(default)
    return click.option(flag, type=kind, default=default, show_default=True, help=text)


def model(flag: str, kind: Any, text: str) -> Decorator:
    """An option that changes one field of the preset."""
    return click.option(flag, type=kind, default=None, help=f"{text} [default: the preset's]")


labels_option = click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Own label set: a text file, one a line. [default: the paper's 36]",
)

model_options = group(
    model("--image-size", int, "Height and width of the input, pixels."),
    model("--stages", int, "How many of the backbone's last stages give the tokens."),
    model("--projection", click.Choice(get_args(Projection)), "How tokens become the decoder's memory."),
    model("--head", click.Choice(get_args(Head)), "How label states become logits."),
    model("--width", int, "Width of the decoder."),
    model("--blocks", int, "Decoder blocks."),
    model("--heads", int, "Attention heads."),
    model("--ffn", int, "Hidden width of the decoder's feed-forward network."),
    model("--dropout", float, "In the decoder."),
    model("--drop-path", float, "Stochastic depth of the backbone."),
)

recipe_options = group(
    click.option("--no-pretrained", is_flag=True, help="Begin with a random backbone."),
    recipe("--positive-weight", "Weigh rare labels up in the loss.", recipes.PositiveWeight),
    recipe("--smoothing", "Label smoothing."),
    recipe("--augment", "RandAugment policy in timm's notation, or none."),
    recipe("--flip", "Probability of the mirror image."),
    recipe("--crop", "Smallest share of the area that a random crop keeps; 1 = no crop."),
    recipe("--epochs", "Passes over the training split."),
    recipe("--batch", "Images of one optimiser step, over all GPUs and pieces."),
    recipe("--accumulate", "Cut each GPU's share of a batch into so many pieces, to fit its memory."),
    recipe("--lr", "Peak learning rate."),
    recipe("--head-lr", "Learning rate after the backbone, times --lr."),
    recipe("--layer-decay", "Factor by which each lower layer of the backbone learns slower."),
    recipe("--weight-decay", "Of matrices; not of norms, biases and embeddings."),
    recipe("--schedule", "Of the learning rate, after the warm-up.", recipes.Schedule),
    recipe("--warmup-epochs", "The learning rate rises from 0 over these."),
    recipe("--min-lr", "Where cosine ends, times --lr."),
    recipe("--clip", "Largest norm of the gradient; 0 = any."),
    recipe("--freeze-epochs", "The backbone and its BatchNorm statistics stand still in these."),
    recipe("--freeze-stages", "The stem and so many of the lowest stages (transformer blocks) never learn."),
    click.option("--freeze-norm", is_flag=True, help="The backbone's BatchNorm keeps its pretrained statistics."),
    recipe("--ema", "Decay of the weights' moving average, e.g. 0.999; 0 = none."),
    recipe(
        "--best", "The epoch to keep has the highest mAP, or the lowest loss, of the validation split.", recipes.Best
    ),
    recipe("--patience", "Stop after so many epochs without a better one; 0 = never."),
    recipe("--precision", "Of the matrix products; fp16 needs CUDA.", recipes.Precision),
    recipe("--seed", "Of everything random."),
)

run_options = group(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--workers", type=click.IntRange(0), help="Processes that decode. [default: by the cores]"),
    click.option("--cache", is_flag=True, help="Keep decoded images in shared memory."),
    click.option("--compile", is_flag=True, help="torch.compile the model."),
    click.option("--deterministic", is_flag=True, help="On a GPU: the same bits each time, slower."),
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard logs too."),
    click.option(
        "--save-every", type=click.IntRange(0), default=0, metavar="STEPS", help="Save the state within epochs."
    ),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)


def chosen_labels(chosen: Mapping[str, Any]) -> tuple[str, ...]:
    """The label set of a command's options."""
    return read_labels(chosen["labels"]) if chosen["labels"] else MINERALS


def model_changes(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the model that a command's options change."""
    return {name: chosen[name] for name in _MODEL_FIELDS & chosen.keys() if chosen[name] is not None}


def make_recipe(chosen: Mapping[str, Any], model: ModelConfig, pretrained: str) -> TrainConfig:
    """The recipe of a command's options.

    Raises:
        MineralError: when a value is outside its range.
    """
    values = {name: value for name, value in chosen.items() if name in _DEFAULTS}
    policy = "" if chosen["augment"] == "none" else chosen["augment"]
    return recipes.TrainConfig(**{**values, "model": model, "pretrained": pretrained, "augment": policy})


def make_options(chosen: Mapping[str, Any]) -> RunOptions:
    """How the command's options want it carried out."""
    return recipes.RunOptions(**{name: value for name, value in chosen.items() if name in _RUN_FIELDS})
