"""The options that `fit` and `tables` share, and how they become a recipe.

Every option that sets a field of the recipe or the model has the default None: what the user did not give comes from
`--set`, then from the recipe, then from the dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args

import click

from mineral_batch.cli.help import NumberFormat
from mineral_batch.cli.paths import FETCHED
from mineral_batch.errors import OptionError
from mineral_batch.minerals import MINERALS
from mineral_train.data.labels import nearest, read_names
from mineral_train.model.presets import PRESETS, Head, Method, ModelConfig, Projection
from mineral_train.training import config as recipes
from mineral_train.training.config import RunOptions, TrainConfig

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

_RECIPE_DEFAULTS = {f.name: f.default for f in fields(TrainConfig) if f.name != "model"}
_MODEL_DEFAULTS = {f.name: f.default for f in fields(ModelConfig) if f.name not in ("labels", "backbone")}
_RUN_FIELDS = {f.name for f in fields(RunOptions)}

#: The names of settings that change a model, and of those of a recipe.
MODEL_SETTINGS, RECIPE_SETTINGS = tuple(_MODEL_DEFAULTS), tuple(_RECIPE_DEFAULTS)
#: What `--set` and a recipe file may name, with the paper's value.
SETTINGS: Mapping[str, Any] = {"preset": "", "backbone": "", **_MODEL_DEFAULTS, **_RECIPE_DEFAULTS}


def group(*decorators: Decorator) -> Decorator:
    """Combine options into one decorator; `--help` lists them in this order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def setting(flag: str, text: str, choices: Any = None, *, shown: bool = False) -> Decorator:
    """Make an option that sets one field of the recipe or the model."""
    name = flag.removeprefix("--").replace("-", "_")
    default = SETTINGS[name]
    hint = "" if isinstance(default, bool) or name in _MODEL_DEFAULTS else f" [paper: {default or 'none'}]"
    if isinstance(default, bool):
        return click.option(flag, is_flag=True, default=None, help=text, hidden=not shown)
    kind = NumberFormat(get_args(choices)) if choices else type(default)
    return click.option(flag, type=kind, default=None, help=text + hint, hidden=not shown)


labels_option = click.option(
    "--labels",
    type=FETCHED,
    metavar="FILE",
    help="Your own label set: a text file with one name per line. [default: the paper's 36]",
)


def model_options(*, shown: bool) -> Decorator:
    """Make the options that change a preset."""
    return group(
        setting("--image-size", "Height and width of the input, pixels.", shown=True),
        setting("--stages", "How many of the backbone's last stages give the tokens.", shown=shown),
        setting("--projection", "How tokens become the decoder's memory.", Projection, shown=shown),
        setting("--head", "How label states become logits.", Head, shown=shown),
        setting("--width", "Width of the decoder.", shown=shown),
        setting("--blocks", "Decoder blocks.", shown=shown),
        setting("--heads", "Attention heads.", shown=shown),
        setting("--ffn", "Hidden width of the decoder's feed-forward network.", shown=shown),
        setting("--dropout", "Dropout in the decoder.", shown=shown),
        setting("--drop-path", "Stochastic depth of the backbone.", shown=shown),
    )


method_option = setting("--method", "How the backbone's features become logits.", Method)
loss_option = setting("--loss", "Which loss.", recipes.LossName)
imply_parents_option = setting("--imply-parents", "Label varieties with their species and group, too: agate is quartz.")
tune_option = setting("--tune-thresholds", "Choose thresholds of the best F1 on the validation split, not 0.5.")


def recipe_options(*, shown: bool) -> Decorator:
    """Make the options of the recipe; those that most users need are always shown."""
    return group(
        click.option("--no-pretrained", is_flag=True, help="Start with a random backbone.", hidden=not shown),
        setting("--epochs", "Passes over the training split.", shown=True),
        setting("--batch", "Images per optimizer step, over all GPUs.", shown=True),
        setting("--lr", "Peak learning rate.", shown=True),
        setting("--accumulate", "Split each GPU's share of a batch to fit its memory.", shown=shown),
        setting("--positive-weight", "Give rare labels more weight in the loss.", recipes.PositiveWeight, shown=shown),
        setting("--smoothing", "Label smoothing.", shown=shown),
        setting("--augment", "RandAugment policy in timm's notation, or none.", shown=shown),
        setting("--flip", "Probability of the mirror image.", shown=shown),
        setting("--crop", "Smallest share of the area that a random crop keeps; 1 = no crop.", shown=shown),
        setting("--head-lr", "Learning rate after the backbone, as a multiple of --lr.", shown=shown),
        setting("--layer-decay", "Factor by which each lower layer of the backbone learns slower.", shown=shown),
        setting("--weight-decay", "AdamW's weight decay, on matrices only.", shown=shown),
        setting("--schedule", "Learning rate after the warm-up.", recipes.Schedule, shown=shown),
        setting("--warmup-epochs", "Epochs over which the learning rate rises from 0.", shown=shown),
        setting("--min-lr", "Where cosine ends, as a multiple of --lr.", shown=shown),
        setting("--clip", "Largest norm of the gradient; 0 = no limit.", shown=shown),
        setting("--freeze-epochs", "Freeze the backbone in these first epochs.", shown=shown),
        setting("--freeze-stages", "Freeze the stem and this many of the lowest stages.", shown=shown),
        setting("--freeze-norm", "Keep the backbone's pretrained BatchNorm statistics.", shown=shown),
        setting("--ema", "Decay of the weights' moving average, e.g. 0.999; 0 = none.", shown=shown),
        setting("--best", "Keep the epoch of the highest mAP, or of the lowest loss.", recipes.Best, shown=shown),
        setting("--patience", "Stop after this many epochs without a better one; 0 = never.", shown=shown),
        setting("--precision", "Precision of the matrix products; fp16 needs CUDA.", recipes.Precision, shown=shown),
        setting("--seed", "Seed of everything random.", shown=True),
    )


def run_options(*, shown: bool) -> Decorator:
    """Make the options of how a run is carried out here."""
    return group(
        click.option(
            "--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N."
        ),
        click.option(
            "--workers",
            type=click.IntRange(0),
            help="Processes that decode images. [default: one per CPU]",
            hidden=not shown,
        ),
        click.option("--cache", is_flag=True, help="Keep decoded images in shared memory.", hidden=not shown),
        click.option("--compile", is_flag=True, help="Compile the model with torch.compile.", hidden=not shown),
        click.option(
            "--deterministic", is_flag=True, help="Bit-identical results; slower: one CPU thread.", hidden=not shown
        ),
        click.option("--skip-damaged", is_flag=True, help="Continue without images that cannot be decoded."),
        click.option("--tensorboard", is_flag=True, help="Also write TensorBoard logs.", hidden=not shown),
        click.option(
            "--save-every",
            type=click.IntRange(0),
            default=0,
            metavar="STEPS",
            help="Save the state every STEPS optimizer steps. [default: every 5 minutes]",
            hidden=not shown,
        ),
        click.option("-q", "--quiet", is_flag=True, help="Show no progress bar.", hidden=not shown),
    )


def chosen_labels(chosen: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the label set of a command's options; the names are checked with the manifest, all faults at once."""
    return read_names(chosen["labels"]) if chosen["labels"] else MINERALS


def given(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the user gave as options."""
    return {name: value for name, value in chosen.items() if name in SETTINGS and value not in (None, "")}


def parse_settings(texts: Sequence[str]) -> dict[str, Any]:
    """Read the `key=value` of `--set`.

    Raises:
        OptionError: if a text is not of that form.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (key, sign, value) in zip(texts, pairs, strict=True):
        if not (key and sign and value):
            raise OptionError(f"--set takes key=value, for example --set epochs=20; got {text!r}")
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to the types of their fields.

    Raises:
        OptionError: if there is no such setting, or a value is of another type.
    """
    return {name: _typed(name, value) for name, value in settings.items()}


def _typed(name: str, value: Any) -> Any:
    if name not in SETTINGS:
        guess = nearest(name, SETTINGS)
        hint = f"did you mean {guess}?" if guess else "`mineral-train fit --settings` lists them"
        raise OptionError(f"no setting {name!r}; {hint}")
    if name == "augment" and value == "none":
        return ""
    kind = type(SETTINGS[name])
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if str(value).lower() in words:
            return words[str(value).lower()]
    elif kind is float and not isinstance(value, bool):
        return _number(name, value, float)
    elif kind is int and not isinstance(value, bool | float):
        return _number(name, value, int)
    elif kind is str and isinstance(value, str):
        return value
    raise OptionError(f"the setting {name} must be of type {kind.__name__}, got {value!r}")


def _number(name: str, value: Any, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise OptionError(f"the setting {name} must be a number ({kind.__name__}), got {value!r}") from None


def make_recipe(settings: Mapping[str, Any], model: ModelConfig) -> TrainConfig:
    """Make the recipe of checked settings; those that change a model change `model`.

    Raises:
        MineralError: if a value is outside its range.
    """
    changes = {name: value for name, value in settings.items() if name in _MODEL_DEFAULTS}
    values = {name: value for name, value in settings.items() if name in _RECIPE_DEFAULTS}
    return TrainConfig(replace(model, **changes), **values)


def preset_model(settings: Mapping[str, Any], default: ModelConfig) -> ModelConfig:
    """Return the model that `preset` or `backbone` names, else `default`.

    Raises:
        OptionError: if there is no such preset.
    """
    if settings.get("backbone"):
        return replace(PRESETS["vit-b16-384"], backbone=settings["backbone"])
    name = settings.get("preset")
    if name and name not in PRESETS:
        raise OptionError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name] if name else default


def make_options(chosen: Mapping[str, Any]) -> RunOptions:
    """Make the run options of a command's options."""
    return RunOptions(**{name: value for name, value in chosen.items() if name in _RUN_FIELDS})
