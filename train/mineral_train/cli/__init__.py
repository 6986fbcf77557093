"""`mineral-train`: from photographs with labels to a checkpoint."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "fit": ("mineral_train.cli.fit:fit", "Train a model on a manifest; resumes where it stopped."),
    "data": ("mineral_train.cli.data:data", "Make a manifest from folders or a CSV: check, merge, split."),
    "calibrate": ("mineral_train.cli.calibrate:calibrate", "Calibrate a model's probabilities on labeled images."),
    "familiarity": (
        "mineral_train.cli.familiarity:familiarity",
        "Add a score of how familiar an image is to a model.",
    ),
    "average": ("mineral_train.cli.average:average", "Average the weights of several runs."),
    "adapt": ("mineral_train.cli.adapt:adapt", "Fit a model of your own from labeled photographs, in minutes."),
    "synth": ("mineral_train.cli.synth:synth", "Generate labeled synthetic specimen images."),
    "tables": ("mineral_train.cli.tables:tables", "Train and print the paper's Tables 3, 4 and 5."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MINERAL_TRAIN"},
)
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Train a multi-label mineral classifier on your own photographs."""
