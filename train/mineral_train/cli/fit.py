"""`mineral-train fit`: from a manifest to a checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from mineral_batch.cli.console import EXIT_INTERRUPTED, EXIT_TERMINATED
from mineral_batch.cli.paths import INPUT, LOCAL, LOCAL_TEXT
from mineral_batch.errors import ContractError, DataError, MineralError
from mineral_batch.model.onnx_file import read_contract
from mineral_train.cli import _options
from mineral_train.data.manifest import inspect_manifest
from mineral_train.model.fetched import ONNX, fetch_model
from mineral_train.model.presets import PRESETS, ModelConfig
from mineral_train.training.config import STARTER, TrainConfig
from mineral_train.training.recipes import STARTER_MODEL, default_recipe, load_recipe

_SIGTERM = 15


def _print_settings(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo("\n".join(f"{name} = {json.dumps(value)}" for name, value in _options.SETTINGS.items()))
        context.exit()


@click.command()
@click.argument("manifests", metavar="MANIFEST...", nargs=-1, required=True, type=INPUT)
@click.option("-o", "--output", "run", required=True, type=LOCAL, metavar="DIR", help="Folder of the run.")
@click.option(
    "--recipe",
    type=LOCAL_TEXT,
    metavar="few|paper|FILE",
    help="few: for up to 20,000 images, starts from the starter model. paper: as in Wu et al. 2022. FILE: your own, "
    "TOML with lines key = value. [default: by the number of training images]",
)
@click.option("--preset", type=click.Choice(list(PRESETS)), help="A model by name. [default: the recipe's]")
@click.option("--backbone", help="In place of a preset: any timm model, with the paper's decoder.", hidden=True)
@_options.labels_option
@_options.method_option
@_options.model_options(shown=False)
@click.option("--pretrained", default=None, metavar="FILE|hub", help="The backbone's weights.", hidden=True)
@click.option(
    "--init",
    default=None,
    metavar="RUN|FILE.onnx|starter",
    help="Start from the weights of a run or an exported model (a path or URL).",
)
@_options.loss_option
@_options.recipe_options(shown=False)
@_options.imply_parents_option
@_options.tune_option
@_options.run_options(shown=False)
@click.option("--sync-bn", "sync_batch_norm", is_flag=True, help="Share BatchNorm statistics of GPUs.", hidden=True)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting. Repeatable.")
@click.option("--settings", "_", is_flag=True, is_eager=True, expose_value=False, callback=_print_settings,
              help="List all settings with the paper's values, and exit.")  # fmt: skip
@click.option("--restart", is_flag=True, help="Delete the run in the folder and start over.")
def fit(manifests: tuple[Path | str, ...], run: Path, **chosen: Any) -> None:
    """Train a model on MANIFEST (or several, or their URLs) and keep the epoch that is best on the validation split.

    The same command resumes where it stopped. With several GPUs: torchrun --nproc-per-node 4 -m mineral_train fit ...
    """
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started
    _require_consistent(chosen)
    # Neither the labels nor the rows are checked here: training names all their faults at once.
    labels = _options.chosen_labels(chosen)
    name, why = chosen["recipe"], ""
    if name is None:
        tables = [inspect_manifest(manifest, labels)[0] for manifest in manifests]
        name, why = default_recipe(sum(len(table.select("train")) for table in tables))
    config = _config(name, chosen, labels)
    options = _options.make_options(chosen)
    from mineral_train.training.fit import fit as fit_run
    from mineral_train.training.stop import RunStopped

    if why and is_main:
        click.echo(f"Recipe {name}: {why}")
    again = "the same command without --restart" if options.restart else "the same command"
    try:
        fit_run(config, manifests, run, options, say=click.echo)
    except RunStopped as stopped:
        if is_main:
            click.echo(f"\nStopped; the state is saved in {run}, {again} resumes from it", err=True)
        raise SystemExit(EXIT_TERMINATED if stopped.number == _SIGTERM else EXIT_INTERRUPTED) from None
    except KeyboardInterrupt:
        if is_main:
            click.echo(f"\nStopped; {_what_is_saved(run, again)}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    if is_main:
        click.echo(f"Next: mineral-export onnx {run} -o model.onnx")


def _what_is_saved(run: Path, again: str) -> str:
    saved = (run / "last" / "state.safetensors").exists()
    return f"{again} resumes from the last state saved in {run}" if saved else "no state was saved yet"


def _require_consistent(chosen: Mapping[str, Any]) -> None:
    if chosen["preset"] and chosen["backbone"]:
        raise click.UsageError("--preset and --backbone exclude each other")
    if chosen["no_pretrained"] and chosen["pretrained"]:
        raise click.UsageError("--pretrained and --no-pretrained exclude each other")


def _config(recipe: str, chosen: Mapping[str, Any], labels: tuple[str, ...]) -> TrainConfig:
    """The recipe's settings, changed by `--set`, changed by the options."""
    from_user = {**_options.parse_settings(chosen["settings"]), **_options.given(chosen)}
    if chosen["no_pretrained"]:
        from_user["pretrained"] = "none"
    settings = _options.check_settings({**load_recipe(recipe), **from_user})
    other_start = {"preset", "backbone", "pretrained"} & from_user.keys()
    if recipe == "few" and other_start and "init" not in from_user:
        # Not from the starter: let the new head settle first. How many stages to freeze was measured on it only.
        own = {"init": "", "freeze_epochs": 1, "freeze_stages": 0}
        settings = {**settings, **own} | _options.check_settings(from_user)
    if recipe == "few" and {"preset", "backbone", "method", "image_size"} & from_user.keys():
        settings = {**settings, "train_size": 0} | _options.check_settings(from_user)  # it is for the starter's size
    model = _options.preset_model(settings, _model_of(settings.get("init", "")))
    return _options.make_recipe(settings, replace(model, labels=labels))


def _model_of(init: str) -> ModelConfig:
    """The model of the weights to begin with; the paper's if there are none."""
    if not init:
        return PRESETS["vit-b16-384"]
    if init == STARTER and not Path(init).exists():
        return STARTER_MODEL
    model = fetch_model(init)
    if model.suffix != ONNX:
        from mineral_train.training.checkpoint import read_config

        return ModelConfig.from_json(read_config(model)["model"])
    try:
        record = read_contract(model).provenance["recipe"]["model"]
        return ModelConfig.from_json(record)
    except (KeyError, TypeError, ContractError, MineralError) as error:
        if isinstance(error, ContractError):
            raise
        raise DataError(f"{init} does not say which architecture it has: name it with --preset or --backbone") from None
