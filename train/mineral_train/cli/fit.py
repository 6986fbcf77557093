"""`mineral-train fit`: from a manifest to a checkpoint."""

from __future__ import annotations

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from mineral_batch.contract import MINERALS
from mineral_train import config as recipes
from mineral_train.manifest import read_labels
from mineral_train.presets import PRESETS, Head, Method, ModelConfig, Projection

if TYPE_CHECKING:
    from collections.abc import Callable

    from mineral_train.config import RunOptions, TrainConfig

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

EXIT_INTERRUPTED = 130

_DEFAULTS = {f.name: f.default for f in fields(recipes.TrainConfig)}
_MODEL_FIELDS = {f.name for f in fields(ModelConfig)} - {"labels"}


def _recipe(flag: str, text: str, choices: Any = None) -> Decorator:
    """An option of the recipe, with the recipe's own default."""
    default = _DEFAULTS[flag.removeprefix("--").replace("-", "_")]
    kind = click.Choice(get_args(choices)) if choices else type(default)
    return click.option(flag, type=kind, default=default, show_default=True, help=text)


def _model(flag: str, kind: Any, text: str) -> Decorator:
    """An option that changes one field of the preset."""
    return click.option(flag, type=kind, default=None, help=f"{text} [default: the preset's]")


def _options(*decorators: Decorator) -> Decorator:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


model_options = _options(
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        help="A model by name. [default: vit-b16-384, the paper's]",
    ),
    click.option("--backbone", help="In place of a preset: any timm model, with the paper's decoder."),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Own label set: a text file, one a line. [default: the paper's 36]",
    ),
    _model("--image-size", int, "Height and width of the input, pixels."),
    _model("--method", click.Choice(get_args(Method)), "What turns the backbone's features into logits."),
    _model("--projection", click.Choice(get_args(Projection)), "How tokens become the decoder's memory."),
    _model("--head", click.Choice(get_args(Head)), "How label states become logits."),
    _model("--width", int, "Width of the decoder."),
    _model("--blocks", int, "Decoder blocks."),
    _model("--heads", int, "Attention heads."),
    _model("--ffn", int, "Hidden width of the decoder's feed-forward network."),
    _model("--dropout", float, "In the decoder."),
    _model("--drop-path", float, "Stochastic depth of the backbone."),
)

recipe_options = _options(
    click.option("--pretrained", default="hub", show_default=True, metavar="FILE|hub", help="The backbone's weights."),
    click.option("--no-pretrained", is_flag=True, help="Begin with a random backbone."),
    click.option("--init", default="", metavar="CHECKPOINT", help="Begin with all weights of a checkpoint folder."),
    _recipe("--loss", "The loss.", recipes.LossName),
    _recipe("--positive-weight", "Weigh rare labels up in the loss.", recipes.PositiveWeight),
    _recipe("--smoothing", "Label smoothing."),
    _recipe("--augment", "RandAugment policy in timm's notation, or none."),
    _recipe("--flip", "Probability of the mirror image."),
    _recipe("--crop", "Smallest share of the area that a random crop keeps; 1 = no crop."),
    _recipe("--epochs", "Passes over the training split."),
    _recipe("--batch", "Pictures of one optimiser step, over all GPUs and pieces."),
    _recipe("--accumulate", "Cut each GPU's share of a batch into so many pieces, to fit its memory."),
    _recipe("--lr", "Peak learning rate."),
    _recipe("--head-lr", "Learning rate after the backbone, times --lr."),
    _recipe("--layer-decay", "Factor by which each lower layer of the backbone learns slower."),
    _recipe("--weight-decay", "Of matrices; not of norms, biases and embeddings."),
    _recipe("--schedule", "Of the learning rate, after the warm-up.", recipes.Schedule),
    _recipe("--warmup-epochs", "The learning rate rises from 0 over these."),
    _recipe("--min-lr", "Where cosine ends, times --lr."),
    _recipe("--clip", "Largest norm of the gradient; 0 = any."),
    _recipe("--freeze-epochs", "The backbone and its BatchNorm statistics stand still in these."),
    _recipe("--ema", "Decay of the weights' moving average, e.g. 0.999; 0 = none."),
    _recipe("--patience", "Stop after so many epochs without a better validation mAP; 0 = never."),
    _recipe("--precision", "Of the matrix products; fp16 needs CUDA.", recipes.Precision),
    click.option("--tune-thresholds", is_flag=True, help="Thresholds of best F1 on the validation split, not 0.5."),
    _recipe("--seed", "Of everything random."),
)  # fmt: skip

run_options = _options(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--workers", type=click.IntRange(0), help="Processes that decode. [default: by the cores]"),
    click.option("--cache", is_flag=True, help="Keep decoded pictures in shared memory."),
    click.option("--compile", is_flag=True, help="torch.compile the model."),
    click.option("--sync-bn", "sync_batch_norm", is_flag=True, help="Share BatchNorm statistics between GPUs."),
    click.option("--deterministic", is_flag=True, help="On a GPU: the same bits each time, slower."),
    click.option("--tensorboard", is_flag=True, help="Write TensorBoard logs too."),
    click.option(
        "--save-every",
        type=click.IntRange(0),
        default=0,
        metavar="STEPS",
        help="Save the state also within epochs.",
    ),
    click.option("--quiet", is_flag=True, help="No progress bar."),
)


@click.command(context_settings={"show_default": False})
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", "run", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@model_options
@recipe_options
@run_options
@click.option("--restart", is_flag=True, help="Throw the run in the folder away and begin again.")
def fit(manifest: Path, run: Path, **chosen: Any) -> None:
    """Train a model on MANIFEST and keep the epoch with the best validation mAP.

    The defaults are the paper's recipe. The same command goes on where it stopped, to the same weights. Several GPUs:
    torchrun --nproc-per-node 4 -m mineral_train fit ...
    """
    config, options = make_config(chosen), make_options(chosen)
    from mineral_train.loop import fit as fit_run

    try:
        fit_run(config, manifest, run, options, say=click.echo)
    except KeyboardInterrupt:
        again = "the same command without --restart" if options.restart else "the same command"
        click.echo(f"\nstopped; {again} goes on from the last state saved in {run}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    if os.environ.get("RANK", "0") == "0":  # of those that torchrun started
        click.echo(f"next: mineral-export onnx {run} -o model.onnx")


def make_config(chosen: dict[str, Any]) -> TrainConfig:
    """The recipe of a command's options.

    Raises:
        UsageError: when two options exclude each other.
        MineralError: when a value is outside its range.
    """
    values = {name: value for name, value in chosen.items() if name in _DEFAULTS}
    values["pretrained"] = _pretrained(chosen)
    values["augment"] = "" if chosen["augment"] == "none" else chosen["augment"]
    return recipes.TrainConfig(model=model_config(chosen), **values)


def _pretrained(chosen: dict[str, Any]) -> str:
    if chosen["no_pretrained"] and chosen["pretrained"] != "hub":
        raise click.UsageError("--pretrained and --no-pretrained exclude each other")
    return "none" if chosen["no_pretrained"] else str(chosen["pretrained"])


def model_config(chosen: dict[str, Any]) -> ModelConfig:
    """The model of a command's options."""
    if chosen["preset"] and chosen["backbone"]:
        raise click.UsageError("--preset and --backbone exclude each other")
    base = ModelConfig() if chosen["backbone"] else PRESETS[chosen["preset"] or "vit-b16-384"]
    changes = {name: chosen[name] for name in _MODEL_FIELDS if chosen[name] is not None}
    labels = read_labels(chosen["labels"]) if chosen["labels"] else MINERALS
    return replace(base, labels=labels, **changes)


def make_options(chosen: dict[str, Any]) -> RunOptions:
    """How the command's options want it carried out."""
    known = {f.name for f in fields(recipes.RunOptions)}
    return recipes.RunOptions(**{name: value for name, value in chosen.items() if name in known})
