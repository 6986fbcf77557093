"""`mineral-train tables`: the paper's Tables 3, 4 and 5 for a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mineral_batch.cli.console import EXIT_INTERRUPTED
from mineral_batch.cli.help import SectionedCommand
from mineral_batch.cli.paths import INPUT, LOCAL
from mineral_batch.errors import DataError, OptionError
from mineral_batch.files import is_file, write_errors
from mineral_batch.results.written import require_replaceable
from mineral_batch.storage.models import fetch
from mineral_train import paper_tables as paper
from mineral_train.cli import _options
from mineral_train.model.presets import PRESETS, ModelConfig
from mineral_train.training.config import DoesNotFitError

if TYPE_CHECKING:
    from mineral_train.training.config import RunOptions, TrainConfig

_NOT_YET = "not trained yet"
_TOO_LARGE = "did not fit this GPU"


_SECTIONS = {
    "Model": [name for name in _options.MODEL_SETTINGS if name != "image_size"],
    "Recipe": ["no_pretrained", *_options.RECIPE_SETTINGS],
    "Run": [
        "device", "workers", "cache", "compile", "deterministic", "skip_damaged", "tensorboard", "save_every", "quiet",
    ],
}  # fmt: skip


@click.command(cls=SectionedCommand, sections=_SECTIONS)
@click.argument("manifest", type=INPUT)
@click.option(
    "-o",
    "--output",
    "folder",
    required=True,
    type=LOCAL,
    metavar="DIR",
    help="Folder of the runs.",
)
@click.option(
    "--table", "numbers", type=click.Choice(["3", "4", "5"]), multiple=True, help="Only this table. Repeatable."
)
@click.option(
    "--rows", "runs", multiple=True, metavar="RUN", help="Only this row, e.g. resnet-101-asymmetric. Repeatable."
)
@click.option(
    "--stand-in",
    multiple=True,
    metavar="PRESET=TIMM",
    help="Train another timm backbone in the row of PRESET. Repeatable.",
)
@click.option(
    "--weights",
    multiple=True,
    metavar="PRESET=FILE",
    help="Weights of a backbone, in place of the hub's. Repeatable.",
)
@_options.labels_option
@_options.model_options(shown=True)
@_options.recipe_options(shown=True)
@_options.run_options(shown=True)
def tables(manifest: Path | str, folder: Path, **chosen: Any) -> None:
    """Train and print the paper's Tables 3, 4 and 5 on MANIFEST, beside the paper's figures.

    Each row is a run in its own folder; the same command continues with the unfinished ones. Writes tables.md and
    tables.csv after every row.
    """
    rows = paper.choose_rows([int(number) for number in chosen["numbers"]], chosen["runs"])
    if not any((folder / row.run).is_dir() for row in rows):  # nothing of ours is there yet
        for name in paper.TABLES:
            require_replaceable(folder, folder / name, "mineral-train tables")
    configs = _configs(rows, chosen)
    paper.require_usable(manifest, _options.chosen_labels(chosen), skip_damaged=chosen["skip_damaged"])
    try:
        text = _fill(rows, configs, manifest, folder, _options.make_options(chosen))
    except KeyboardInterrupt:
        click.echo(f"\nStopped; the same command goes on; what is finished is in {folder / 'tables.md'}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    click.echo(text)
    click.echo("\n".join(f"Wrote {folder / name}" for name in paper.TABLES))


def _configs(rows: list[paper.Row], chosen: dict[str, Any]) -> dict[str, TrainConfig]:
    """Recipe of every run, by its name."""
    settings = _options.check_settings(_options.given(chosen))
    if chosen["no_pretrained"]:
        settings["pretrained"] = "none"
    recipe = _options.make_recipe(settings, ModelConfig(labels=_options.chosen_labels(chosen)))
    changes = {name: value for name, value in settings.items() if hasattr(recipe.model, name)}
    stand_ins, weights = _pairs("--stand-in", chosen["stand_in"]), _pairs("--weights", chosen["weights"])
    absent = [name for name in weights.values() if not is_file(fetch(name))]
    if absent:  # before hours of training
        raise DataError(f"--weights: there is no file {absent[0]}")
    return {row.run: paper.row_config(row, recipe, changes, stand_ins, weights) for row in rows}


def _pairs(flag: str, texts: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    wrong = [name for name, value in pairs.items() if name not in PRESETS or not value]
    if wrong:
        raise OptionError(f"{flag} takes PRESET=VALUE with a preset of {', '.join(PRESETS)}; got {wrong[0]!r}")
    return pairs


def _fill(
    rows: list[paper.Row], configs: dict[str, TrainConfig], manifest: Path | str, folder: Path, options: RunOptions
) -> str:
    """Train what is missing, writing the tables after each run; the Markdown."""
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paper.require_unedited_tables(folder)
    finished = {run: paper.finished_row(folder / run, config, manifest) for run, config in configs.items()}
    results: dict[str, paper.RowResult | str] = {run: result or _NOT_YET for run, result in finished.items()}
    for run, config in configs.items():
        if finished[run] is None:
            click.echo(f"{run}: training", err=True)
            results[run] = _train(config, manifest, folder / run, options)
            paper.write_tables(folder, {row: results[row.run] for row in rows})
    return paper.write_tables(folder, {row: results[row.run] for row in rows})


def _train(config: TrainConfig, manifest: Path | str, run: Path, options: RunOptions) -> paper.RowResult | str:
    try:
        return paper.train_row(config, manifest, run, options)
    except DoesNotFitError as error:
        click.echo(str(error), err=True)
        return _TOO_LARGE
