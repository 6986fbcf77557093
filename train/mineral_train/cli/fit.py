"""`mineral-train fit`: from a manifest to a checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click

from mineral_train.cli import _options
from mineral_train.model.presets import PRESETS, Method, ModelConfig
from mineral_train.training.config import LossName


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", "run", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="A model by name. [default: vit-b16-384]")
@click.option("--backbone", help="In place of a preset: any timm model, with the paper's decoder.")
@_options.labels_option
@_options.model("--method", click.Choice(get_args(Method)), "What turns the backbone's features into logits.")
@_options.model_options
@click.option("--pretrained", default="hub", show_default=True, metavar="FILE|hub", help="The backbone's weights.")
@click.option("--init", default="", metavar="CHECKPOINT", help="Begin with all weights of a checkpoint folder.")
@_options.recipe("--loss", "The loss.", LossName)
@_options.recipe_options
@click.option("--tune-thresholds", is_flag=True, help="Thresholds of best F1 on the validation split, not 0.5.")
@_options.run_options
@click.option("--sync-bn", "sync_batch_norm", is_flag=True, help="Share BatchNorm statistics between GPUs.")
@click.option("--restart", is_flag=True, help="Throw the run in the folder away and begin again.")
def fit(manifest: Path, run: Path, **chosen: Any) -> None:
    """Train a model on MANIFEST and keep the best epoch by its validation split.

    The defaults are the paper's recipe. The same command goes on where it stopped, to the same weights. Several GPUs:
    torchrun --nproc-per-node 4 -m mineral_train fit ...
    """
    config = _options.make_recipe(chosen, _model(chosen), _pretrained(chosen))
    options = _options.make_options(chosen)
    from mineral_train.training.loop import fit as fit_run

    try:
        fit_run(config, manifest, run, options, say=click.echo)
    except KeyboardInterrupt:
        again = "the same command without --restart" if options.restart else "the same command"
        click.echo(f"\nstopped; {again} goes on from the last state saved in {run}", err=True)
        raise SystemExit(_options.EXIT_INTERRUPTED) from None
    if os.environ.get("RANK", "0") == "0":  # of those that torchrun started
        click.echo(f"next: mineral-export onnx {run} -o model.onnx")


def _model(chosen: dict[str, Any]) -> ModelConfig:
    if chosen["preset"] and chosen["backbone"]:
        raise click.UsageError("--preset and --backbone exclude each other")
    base = PRESETS[chosen["preset"] or "vit-b16-384"]
    if chosen["backbone"]:
        base = replace(base, backbone=chosen["backbone"])
    return replace(base, labels=_options.chosen_labels(chosen), **_options.model_changes(chosen))


def _pretrained(chosen: dict[str, Any]) -> str:
    if not chosen["no_pretrained"]:
        return str(chosen["pretrained"])
    if chosen["pretrained"] != "hub":
        raise click.UsageError("--pretrained and --no-pretrained exclude each other")
    return "none"
