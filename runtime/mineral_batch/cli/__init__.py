"""`mineral-batch`: from folders of images to a table of probabilities."""

import click

from mineral_batch.cli.console import LazyGroup

_COMMANDS = {
    "predict": ("mineral_batch.cli.predict:predict", "Write a table of mineral probabilities for images."),
    "merge": ("mineral_batch.cli.merge:merge", "Write the tables of a run whose shards are all done."),
    "evaluate": ("mineral_batch.cli.evaluate:evaluate", "Compare a table with labels: AP per mineral, mAP, P/R/F1."),
    "check": ("mineral_batch.cli.check:check", "Check that the tables of a run are complete and consistent."),
    "report": ("mineral_batch.cli.report:report", "Build an HTML page of a run: gallery, figures, accuracy."),
    "review": ("mineral_batch.cli.review:review", "Confirm and correct predictions in the browser."),
    "audit": ("mineral_batch.cli.audit:audit", "Find existing labels that look wrong."),
    "deliver": ("mineral_batch.cli.deliver:deliver", "Write Excel, XMP, folders by mineral, maps, Darwin Core."),
    "explain": ("mineral_batch.cli.explain:explain", "Show where in the images the model sees each mineral."),
    "minerals": ("mineral_batch.cli.minerals:minerals", "Show formula, group, names and hazards of minerals."),
    "info": ("mineral_batch.cli.info:info", "Show what a model file contains: labels, input, accuracy."),
    "doctor": ("mineral_batch.cli.doctor:doctor", "Show what is installed and what works, and how to fix the rest."),
}


@click.group(
    cls=LazyGroup,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "MINERAL_BATCH"},
)
@click.version_option(package_name="mineral-batch")
def main() -> None:
    """Recognize 36 minerals in whole folders of photographs.

    Every option can also be set in a TOML file (--config) or an environment variable, such as
    MINERAL_BATCH_PREDICT_BATCH_SIZE=32 for predict --batch-size.
    """
